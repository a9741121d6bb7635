"""Configurations that a family's architecture in llama.cpp would compute otherwise: each is refused
by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from family_rows import EXPERTS, SEES_GLM4, SEES_MUSE, SEES_STEP3P7, sections
from ggext.converters import REFUSED, family_of
from tiny import make_model, small_config

from ggext.checkpoint.config import Config
from ggext.convert import ConvertOptions, plan
from ggext.errors import CheckpointError

pytest.importorskip("transformers")


LATENT = {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 48,
    "kv_lora_rank": 64,
    "v_head_dim": 24,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "n_group": 1,
    "topk_group": 1,
}
GLM4V = {"vision_config": SEES_GLM4, "rope_parameters": sections(8, 0, 8)}


NEMOTRON_H = tiny_gguf.NEMOTRON_H | {
    "layers_block_type": ["linear_attention", "full_attention", "mlp"]
}
FALCON_H1 = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_state": 16}
INDEXED = tiny_gguf.LATENT | tiny_gguf.INDEXED
GRANITE_MAMBA = {
    "layer_types": ["linear_attention", "full_attention"],
    "mamba_n_heads": 4,
}
DELTA_NET = (
    tiny_gguf.DELTA_NET
    | tiny_gguf.DELTA_EXPERTS
    | {"num_hidden_layers": 2, "rms_norm_eps": 1e-6}
)


@pytest.mark.parametrize(
    ("model_type", "config", "message"),
    [
        (
            "afmoe",
            {"layer_types": ["full_attention"] * 2},
            "in all but every 4th layer",
        ),
        ("afmoe", {"route_norm": False}, "route_norm is False; .* afmoe has True"),
        ("afmoe", {"topk_group": 2}, "chooses among all experts"),
        (
            "deepseek_v2",
            LATENT | {"rms_norm_eps": 1e-3},
            "rms_norm_eps is 0.001; .* at most 1e-05 is alike",
        ),
        (
            "deepseek_v3",
            LATENT | {"partial_rotary_factor": 0.5},
            "of the 16 dimensions of qk_rope_head_dim",
        ),
        (
            "dots1",
            {"n_routed_experts": 4, "n_shared_experts": 1},
            "num_key_value_heads is 2; .* has as many as",
        ),
        (
            "ernie4_5_moe",
            {"moe_num_experts": 4, "moe_layer_end_index": 0},
            "moe_layer_end_index is 0",
        ),
        (
            "glm4_moe",
            {"n_routed_experts": 4, "n_group": 2},
            "n_group is 2; .* chooses among all experts",
        ),
        (
            "laguna",
            {"moe_router_logit_softcapping": 5.0},
            "moe_router_logit_softcapping is 5.0; .* caps no scores",
        ),
        (
            "laguna",
            {"mlp_layer_types": ["sparse", "dense"]},
            "must name dense and then sparse",
        ),
        (
            "laguna",
            {"num_attention_heads_per_layer": [4, 3]},
            "must have a multiple of",
        ),
        (
            "llama4_text",
            {"num_local_experts": 4, "num_hidden_layers": 3},
            "has 4 or more",
        ),
        (
            "llama4_text",
            {
                "num_local_experts": 4,
                "num_hidden_layers": 4,
                "attention_chunk_size": 64,
            },
            "has 8192",
        ),
        ("mimo_v2_flash", {"norm_topk_prob": False}, "divides weights by their sum"),
        ("mimo_v2_flash", {"routed_scaling_factor": 2.0}, "scales no experts"),
        (
            "mimo_v2_flash",
            {"hybrid_layer_pattern": [1, 1]},
            r"hybrid_layer_pattern is \[1, 1\]; .* takes \[0, 1\]",
        ),
        (
            "mimo_v2_flash",
            {"layer_types": ["full_attention"] * 2},
            "names no layer with a window",
        ),
        (
            "step3p7",
            {"vision_config": SEES_STEP3P7},
            "names no layer with a window",
        ),
        (
            "step3p7",
            {
                "vision_config": SEES_STEP3P7,
                "layer_types": ["full_attention", "sliding_attention"],
                "query_pre_attn_scalar": 4,
            },
            "query_pre_attn_scalar is 4; .* has head_dim, 128",
        ),
        (
            "muse_glimmer",
            {"vision_config": SEES_MUSE, "post_norm_eps": 1e-5},
            "post_norm_eps is 1e-05; .* takes 1e-08",
        ),
        (
            "muse_glimmer",
            {"vision_config": SEES_MUSE, "layer_rope_theta": [1e4, 1e4]},
            "has other layers rotate than those with a window",
        ),
        (
            "mistral4",
            LATENT | {"rope_interleave": False},
            "mistral4 rotates neighbours",
        ),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scales layers alike"),
        ("gpt_bigcode", {"activation_function": "relu"}, "hidden_act is 'relu'"),
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "before the norm",
        ),
        (
            "mpt",
            {"attn_config": {"alibi_bias_max": 4}},
            "attn_config has alibi_bias_max 4",
        ),
        ("granitemoehybrid", {"mamba_n_heads": 4}, "llama.cpp needs both kinds"),
        (
            "granitemoehybrid",
            {"layer_types": ["full_attention"] * 2, "mamba_n_heads": 4},
            "granitemoe rotates",
        ),
        (
            "granitemoehybrid",
            GRANITE_MAMBA | {"mamba_expand": 3},
            "granitehybrid takes 2 alone",
        ),
        (
            "granitemoehybrid",
            GRANITE_MAMBA | {"mamba_n_groups": 3},
            "must divide the layer's width 256 and be a multiple of mamba_n_groups, 3",
        ),
        (
            "granitemoehybrid",
            GRANITE_MAMBA | {"time_step_limit": [0.0, 0.1]},
            "llama.cpp has no limit",
        ),
        ("granitemoehybrid", GRANITE_MAMBA | {"mamba_proj_bias": True}, "in_proj.bias"),
        (
            "nemotron_h",
            NEMOTRON_H | {"layers_block_type": ["linear_attention", "mlp"]},
            "llama.cpp needs both",
        ),
        (
            "nemotron_h",
            NEMOTRON_H
            | {
                "layers_block_type": [
                    "linear_attention",
                    "full_attention",
                    "mlp",
                    "moe",
                ]
            },
            "has one kind in a model",
        ),
        (
            "nemotron_h",
            NEMOTRON_H | {"mlp_hidden_act": "silu"},
            "hidden_act is 'silu'",
        ),
        (
            "nemotron_h",
            NEMOTRON_H | {"mamba_hidden_act": "gelu"},
            "mamba_hidden_act is 'gelu'",
        ),
        ("nemotron_h", NEMOTRON_H | {"use_bias": True}, "in_proj.bias"),
        (
            "falcon_h1",
            FALCON_H1 | {"mamba_rms_norm": True},
            "norms after the gate",
        ),
        ("falcon_h1", FALCON_H1 | {"attention_bias": True}, "bias"),
        ("falcon_h1", FALCON_H1 | {"projectors_bias": True}, "out_proj.bias"),
        ("falcon_h1", FALCON_H1 | {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("deepseek_v32", INDEXED | {"index_head_dim": 96}, "has a power of two"),
        ("deepseek_v32", INDEXED | {"index_head_dim": 32}, "between 64 and"),
        (
            "glm_moe_dsa",
            INDEXED | {"indexer_types": ["full", "other"]},
            "indexer_types must name full or shared for each of 2 layers, full first",
        ),
        *(
            ("minimax_m3_vl_text", tiny_gguf.IN_BLOCKS | change, message)
            for change, message in (
                ({"swiglu_limit": 5.0}, "swiglu_limit is 5.0"),
                ({"index_block_size": 24}, "is 24; .* has a power of two"),
                ({"index_n_heads": 4}, "is 4; .* as many as num_key_value_heads, 2"),
                ({"index_local_blocks": 4}, "is 4 of 3 blocks"),
                ({"index_head_dim": 8}, "index_head_dim is 8, and 16 dimensions"),
                ({"rotary_dim": 8}, "rotary_dim is 8, .* it rotates 16 of 16"),
                ({"shared_intermediate_size": 40}, "multiple of intermediate_size, 32"),
                ({"mlp_layer_types": ["sparse"] * 2}, "mlp_layer_types differ"),
                ({"layer_types": ["full_attention"] * 2}, "mlp_layer_types differ"),
                (
                    {
                        "layer_types": ["minimax_m3_sparse", "full_attention"],
                        "mlp_layer_types": ["sparse", "dense"],
                    },
                    "layers without experts first",
                ),
            )
        ),
        ("glm4v", GLM4V, r"mrope_section is \(8, 0, 8\)"),
        ("minicpm3", LATENT | {"mlp_bias": True}, "minicpm3 adds no bias there"),
        (
            "olmoe",
            {"num_experts": 4, "num_key_value_heads": 4, "clip_qkv": 8.0},
            "clip_qkv is 8.0",
        ),
        ("cohere2", {"tie_word_embeddings": False}, "cohere2 has no output matrix"),
        (
            "ernie4_5",
            {"use_bias": True},
            "bias, and llama.cpp's architecture ernie4_5 adds no bias there",
        ),
        ("falcon", {"alibi": True}, "this model has ALiBi"),
        ("falcon", {"bias": True}, "falcon has no biases"),
        ("falcon", {"parallel_attn": False}, "side by side"),
        ("gpt_neox", {"attention_bias": False}, "has biases on all projections"),
        ("gpt_neox", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("lfm2", {"layer_types": ["conv", "conv"]}, "llama.cpp needs both kinds"),
        ("minicpm3", {"scale_depth": 1.0}, "computes with 1.4"),
        ("nemotron", {"head_dim": 48}, "hidden_size / num_attention_heads"),
        (
            "olmo2",
            {"attention_bias": True},
            "o_proj.bias, and llama.cpp's architecture olmo2 adds no bias there",
        ),
        ("phi", {"qk_layernorm": True}, "no norm of queries and keys"),
        ("qwen2_moe", EXPERTS | {"norm_topk_prob": True}, "does not normalize"),
        ("qwen2_moe", EXPERTS | {"mlp_only_layers": [0]}, "has experts in every layer"),
        ("qwen3_moe", EXPERTS | {"norm_topk_prob": False}, "normalizes the weights"),
        (
            "smollm3",
            {"no_rope_layer_interval": 2},
            "rotates in all layers but every 4th",
        ),
        (
            "qwen3_next",
            DELTA_NET | {"linear_value_head_dim": 8},
            "linear_value_head_dim is 8; .* has linear_key_head_dim, 16",
        ),
        ("qwen3_next", DELTA_NET | {"norm_topk_prob": False}, "normalizes the weights"),
        ("qwen3_next", DELTA_NET | {"attention_bias": True}, "o_proj.bias"),
        ("qwen3_next", DELTA_NET | {"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001"),
        (
            "qwen3_next",
            DELTA_NET | {"layer_types": ["full_attention"] * 2},
            "llama.cpp needs both kinds",
        ),
        ("starcoder2", {"use_bias": False}, "has biases on all projections"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    model_type: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint = make_model(tmp_path / "model", model_type, **config)
    if "rope_parameters" in config:
        path = checkpoint / "config.json"
        path.write_text(
            json.dumps(
                {
                    k: v
                    for k, v in json.loads(path.read_text()).items()
                    if k != "rope_parameters"
                }
            )
        )
    with pytest.raises(CheckpointError, match=message):
        plan(ConvertOptions(checkpoint, tmp_path / "out.gguf"))


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused_with_the_reason(
    model_type: str,
) -> None:
    with pytest.raises(CheckpointError, match=r"is not converted: llama\.cpp"):
        family_of(Config({"model_type": model_type}, "config.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layer_types": [["conv"], {}]},
            "must name full_attention or conv for each of the 2 layers",
        ),
        (
            {"layer_types": None, "full_attn_idxs": 1},
            "full_attn_idxs is 1; it must be a list of layers",
        ),
    ],
)
def test_layers_that_are_not_named(change: dict[str, Any], message: str) -> None:
    """As no class of transformers would take them."""
    values = json.loads(
        small_config("lfm2", layer_types=["conv", "full_attention"]).to_json_string(
            use_diff=False
        )
    )
    with pytest.raises(CheckpointError, match=message):
        family_of(Config(values | change, "config.json"))


@pytest.mark.parametrize(
    ("model_type", "head"), [("llama", "lm_head"), ("gpt_neox", "embed_out")]
)
def test_an_output_matrix_beside_a_tied_embedding(
    model_type: str, head: str, tmp_path: Path
) -> None:
    """One that repeats it is left out; one that does not is taken, as transformers takes it."""
    from safetensors.numpy import load_file, save_file

    checkpoint = make_model(tmp_path / "model", model_type)
    path, weights = checkpoint / "config.json", checkpoint / "model.safetensors"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True})
    )
    planned = plan(ConvertOptions(checkpoint, tmp_path / "out.gguf"))
    assert f"{head}.weight is another matrix" in " ".join(planned.notes)
    output = next(t for t in planned.source.tensors if t.name == "output.weight")
    assert f"{head}.weight" in output.place
    tensors = load_file(weights)
    embedding = next(
        name
        for name in tensors
        if name.endswith(("embed_tokens.weight", "embed_in.weight"))
    )
    save_file(tensors | {f"{head}.weight": tensors[embedding].copy()}, weights)
    assert not any(
        head in note
        for note in plan(ConvertOptions(checkpoint, tmp_path / "out.gguf")).notes
    )
