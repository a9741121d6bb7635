"""Quantizing through llama.cpp, by the type's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_texts import GREEDY

from ggext.errors import ModelError, UsageError

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from ggext.runtime import quantizer  # noqa: E402
from ggext.runtime.engine import Model, Session  # noqa: E402


def test_quantizing_by_name(small_gguf: Path, story: list[int], tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    quantizer.quantize(small_gguf, out, "q8_0")
    assert out.stat().st_size < small_gguf.stat().st_size
    answers = []
    for path in (small_gguf, out):
        with Model.open(path) as model, Session(model) as session:
            session.evaluate(story)
            answers.append(list(session.generate(GREEDY, 8)))
    assert answers[0] == answers[1]
    assert list(tmp_path.glob(".*")) == []


def test_an_unknown_quantization_names_the_known(
    small_gguf: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"Q9_X.*Q4_K_M"):
        quantizer.quantize(small_gguf, tmp_path / "q.gguf", "Q9_X")


def test_a_refused_quantization_leaves_the_old_file(
    small_gguf: Path, tmp_path: Path
) -> None:
    small, out = tmp_path / "small.gguf", tmp_path / "q.gguf"
    quantizer.quantize(small_gguf, small, "Q8_0")
    out.write_text("old")
    with pytest.raises(
        ModelError, match=r"llama\.cpp says: .*requantizing from type q8_0"
    ):
        quantizer.quantize(small, out, "Q4_0")
    assert {path.name for path in tmp_path.iterdir()} == {
        "home",
        "small.gguf",
        "q.gguf",
    }
    assert out.read_text() == "old"
