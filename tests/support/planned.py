"""Machines and files of the memory plan."""

from __future__ import annotations

from pathlib import Path

from ggext.footprint.planner import Memories
from ggext.plan import PlanOptions, plan

GIB = 1 << 30
FREE = Memories(64 * GIB)


def path_weights(path: Path) -> int:
    return plan(path, PlanOptions(256, gpu_layers=0), FREE).ram.weights
