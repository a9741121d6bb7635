"""Weights that end llama.cpp's quantizer: the process that asked for them lives on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import WIDE, base_of, write_random

from ggext.errors import EngineDiedError
from ggext.gguf.open import read_gguf

pytest.importorskip("llama_cpp")

from ggext.runtime import quantizer

IQ3_S, IQ4_XS = "IQ3_S", "IQ4_XS"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows of 256, a block of these types; weights of 3e38 in one matrix."""
    monkeypatch.delenv("GGEXT_FIRST_LOAD", raising=False)  # with children, as for users
    _, arrays = base_of("llama", size=WIDE)
    name = "blk.0.ffn_up.weight"
    huge = np.where(arrays[name] > 0, 3e38, -3e38).astype("<f4")
    return write_random(
        tmp_path / "huge.gguf", "llama", size=WIDE, extra_tensors={name: huge}
    )


def test_weights_that_end_the_quantizer_are_refused_in_a_sentence(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("old")
    with pytest.raises(
        EngineDiedError, match=r"huge\.gguf is not quantized to IQ3_S"
    ) as died:
        quantizer.quantize(model, out, IQ3_S)
    assert died.value.signal == "SIGABRT"
    assert "\n" not in str(died.value)
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_types_and_importance_reach_the_child(model: Path, tmp_path: Path) -> None:
    """With names that are no file's: of a tensor that is there, and of one that is not."""
    importance = {
        "blk.1.ffn_up.weight": np.linspace(0, 9, 256, dtype="<f4"),
        "../\udcff": np.ones(256, "<f4"),
    }
    plain, weighted = tmp_path / "plain.gguf", tmp_path / "weighted.gguf"
    exact = {"blk.0.ffn_up.weight": 0, "blk.1.ffn_gate.weight": 1}
    quantizer.quantize(model, plain, IQ4_XS, tensor_types=exact)
    quantizer.quantize(model, weighted, IQ4_XS, tensor_types=exact, imatrix=importance)
    files = [read_gguf(path) for path in (plain, weighted)]
    for made in files:
        assert {name: made.tensors[name].type for name in exact} == exact
    same = [
        bytes(files[0].tensor_data(name)) == bytes(files[1].tensor_data(name))
        for name in ("blk.1.ffn_up.weight", "blk.1.ffn_down.weight")
    ]
    assert same == [False, True]
