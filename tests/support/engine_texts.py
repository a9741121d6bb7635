"""What the engine's tests read, and how they sample."""

from __future__ import annotations

from paths import ROOT

from ggext.runtime.engine import Sampling

DOCUMENT = ROOT / "ggext/data/document.txt"
GREEDY = Sampling(temperature=0)
