"""Configurations that a family's architecture in llama.cpp would compute otherwise: each is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from family_rows import EXPERTS
from ggext.converters import family_of
from tiny import make_model, small_config

from ggext.checkpoint.config import Config
from ggext.convert import ConvertOptions, plan
from ggext.errors import CheckpointError

pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("model_type", "config", "message"),
    [
        ("apertus", {"rope_parameters": None}, "rope_parameters is missing"),
        ("cohere2", {"tie_word_embeddings": False}, "cohere2 has no output matrix"),
        ("ernie4_5", {"use_bias": True}, "bias, and llama.cpp's architecture ernie4_5 adds no bias there"),
        ("falcon", {"alibi": True}, "this model has ALiBi"),
        ("falcon", {"bias": True}, "falcon has no biases"),
        ("falcon", {"parallel_attn": False}, "side by side"),
        ("gpt_neox", {"attention_bias": False}, "has biases on all projections"),
        ("gpt_neox", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("lfm2", {"layer_types": ["conv", "conv"]}, "llama.cpp needs both kinds"),
        ("minicpm3", {"scale_depth": 1.0}, "computes with 1.4"),
        ("nemotron", {"head_dim": 48}, "hidden_size / num_attention_heads"),
        ("olmo2", {"attention_bias": True}, "o_proj.bias, and llama.cpp's architecture olmo2 adds no bias there"),
        ("phi", {"qk_layernorm": True}, "no norm of queries and keys"),
        ("qwen2_moe", EXPERTS | {"norm_topk_prob": True}, "does not normalize"),
        ("qwen2_moe", EXPERTS | {"mlp_only_layers": [0]}, "has experts in every layer"),
        ("qwen3_moe", EXPERTS | {"norm_topk_prob": False}, "normalizes the weights"),
        ("smollm3", {"no_rope_layer_interval": 2}, "rotates in all layers but every 4th"),
        ("starcoder2", {"use_bias": False}, "has biases on all projections"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    model_type: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint = make_model(tmp_path / "model", model_type, **config)
    if "rope_parameters" in config:
        path = checkpoint / "config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "rope_parameters"}))
    with pytest.raises(CheckpointError, match=message):
        plan(ConvertOptions(checkpoint, tmp_path / "out.gguf"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": [["conv"], {}]}, "must name full_attention or conv for each of the 2 layers"),
        ({"layer_types": None, "full_attn_idxs": 1}, "full_attn_idxs is 1; it must be a list of layers"),
    ],
)
def test_layers_that_are_not_named(change: dict[str, Any], message: str) -> None:
    """As no class of transformers would take them."""
    values = json.loads(small_config("lfm2", layer_types=["conv", "full_attention"]).to_json_string(use_diff=False))
    with pytest.raises(CheckpointError, match=message):
        family_of(Config(values | change, "config.json"))
