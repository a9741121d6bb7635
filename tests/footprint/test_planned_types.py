"""What llama.cpp's kernels need in float32 is float32, whatever type is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_rows import ROWS
from tiny import make_model

from ggext.convert import ConvertOptions, convert
from ggext.gguf.open import read_gguf
from ggext.gguf.types import type_name

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", ["auto", "f16", "q8_0", "Q4_K_M"])
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("lfm2", ("blk.0.shortconv.conv.weight", "blk.1.attn_q_norm.weight")),
        (
            "qwen2_moe",
            (
                "blk.0.ffn_gate_inp.weight",
                "blk.0.ffn_gate_inp_shexp.weight",
                "blk.1.attn_q.bias",
            ),
        ),
        ("stablelm-12b", ("blk.0.attn_q_norm.weight", "output_norm.bias")),
    ],
)
def test_norms_routers_and_convolutions_stay_float32(
    name: str, kept: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    row = ROWS[name]
    checkpoint = make_model(
        tmp_path / "model", row.model_type, dtype="bfloat16", **row.config
    )
    convert(ConvertOptions(checkpoint, tmp_path / "out.gguf", type=kind))
    types = {
        tensor.name: type_name(tensor.type)
        for tensor in read_gguf(tmp_path / "out.gguf").tensors.values()
    }
    assert {types[tensor] for tensor in kept} == {"F32"}
    assert types["token_embd.weight"] != "F32"
