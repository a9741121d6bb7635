"""Models whose layers do not all rotate alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ggext.convert import ConvertOptions, Plan, convert
from ggext.rope.scaling import RopeScaling

YARN = RopeScaling("yarn", factor=4)
SMALL = {"hidden_size": 64, "intermediate_size": 64, "sliding_window": 32}
LATENT_MODEL = {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 48,
    "kv_lora_rank": 64,
    "n_group": 1,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 24,
    "n_routed_experts": 4,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_shared_experts": 1,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": (
        "gemma2",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    ),
    "gemma3": (
        "gemma3_text",
        {"num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32},
    ),
    "olmo3": ("olmo3", {"num_hidden_layers": 4}),
    "exaone4": ("exaone4", {"num_hidden_layers": 64, "initializer_range": 0.1}),
    "phi": ("phi3", {"sliding_window": None}),
    "gpt_oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "deepseek_v3": ("deepseek_v3", LATENT_MODEL),
}


def bake(
    checkpoint: Path, out: Path, rope: RopeScaling | None = YARN, **options: Any
) -> Plan:
    return convert(ConvertOptions(checkpoint, out, rope, **options))
