"""Configurations of DeepSeek 4 that llama.cpp would compute otherwise, or ends the process on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import make_model
from tiny_gguf import FAMILIES

from ggext.convert import ConvertOptions, plan
from ggext.errors import CheckpointError

pytest.importorskip("transformers")

COMPRESSED = FAMILIES["deepseek4"][1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            COMPRESSED | {"layer_types": ["compressed_sparse_attention"] * 3},
            "names no layer of heavily_compressed_attention, and llama.cpp divides by zero",
        ),
        (
            COMPRESSED
            | {
                "layer_types": ["sliding_attention"] * 2
                + ["heavily_compressed_attention"]
            },
            "names no layer of compressed_sparse_attention, and llama.cpp divides by zero",
        ),
        (COMPRESSED | {"hc_mult": 2}, "hc_mult is 2; .* runs 4"),
        (COMPRESSED | {"scoring_func": "sigmoid"}, "scoring_func is"),
        (COMPRESSED | {"swiglu_limit": 0.0}, "swiglu_limit is 0.0"),
        (
            COMPRESSED | {"mlp_bias": True},
            "deepseek4 adds no bias there",
        ),
        (COMPRESSED | {"index_head_dim": 96}, "has a power of two"),
        (
            COMPRESSED | {"mlp_layer_types": ["moe", "hash_moe", "moe"]},
            "has layers of hash_moe first and 3 in all",
        ),
        (
            COMPRESSED
            | {
                "compress_rates": {
                    "compressed_sparse_attention": 8,
                    "heavily_compressed_attention": 128,
                }
            },
            "compressed_sparse_attention compresses 8 tokens; .* compresses 4",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint = make_model(tmp_path / "model", "deepseek_v4", **config)
    with pytest.raises(CheckpointError, match=message):
        plan(ConvertOptions(checkpoint, tmp_path / "out.gguf"))
