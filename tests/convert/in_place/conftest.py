"""A tiny model that a test may change."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_gguf import write_random


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_random(tmp_path / "model.gguf", "llama")
