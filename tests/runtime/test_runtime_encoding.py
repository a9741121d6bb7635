"""A file that is exact in ggext's own contexts alone: betas on an architecture that reads none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_gguf import write_random

from ggext.convert import ConvertOptions, convert
from ggext.rope.scaling import RopeScaling
from ggext.verify import Report, verify

pytest.importorskip("llama_cpp")


def baked(folder: Path, rope: RopeScaling) -> Report:
    source = write_random(
        folder / "qwen2.gguf", "qwen2", extra_keys={"qwen2.context_length": 4096}
    )
    convert(ConvertOptions(source, folder / "out.gguf", rope, encoding="runtime"))
    return verify(folder / "out.gguf", levels=["table", "graph"])


def test_our_contexts_execute_what_no_key_can_say(tmp_path: Path) -> None:
    """The live graph is the judge; other programs get the nearest keys, and their error is told."""
    report = baked(tmp_path, RopeScaling("yarn", factor=8, beta_fast=200, beta_slow=8))
    assert report.passed, report.checks
    assert {check.level for check in report.checks} == {"table", "graph"}
    assert any(note.startswith("other llama.cpp programs") for note in report.notes)


def test_a_range_that_llama_cpp_rounds_is_not_called_exact(tmp_path: Path) -> None:
    report = baked(tmp_path, RopeScaling("yarn", factor=8, truncate=False))
    assert not report.passed
    wrong = {check.quantity: check.value for check in report.checks if not check.passed}
    told, executed = (
        wrong["frequency error, relative"],
        wrong["frequency executed, relative error"],
    )
    assert math.isclose(told, executed, rel_tol=1e-3)
