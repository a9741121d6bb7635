"""Where the tests find the project, each other's help, and what a user's clone does not have."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
#: Texts, published configs and tokenizers; next to the project, and only on its developers' machines.
SHARED = ROOT.parent / "shared"
