"""The families' test rows: a tiny model of each family's shape, and how close its logits must come
to transformers'."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ggext.rope.scaling import RopeScaling

YARN_4 = RopeScaling("yarn", factor=4)


@dataclass(frozen=True)
class Row:
    """``config``: what is not as in ``tiny.make_model``. ``rope``: baked over the checkpoint's own,
    ``None`` for the checkpoint's own. ``bound``: on the mean KL in nats; why it is not 1e-6 stands
    in the family's file. ``beyond``: whether the scaling says of which context it starts.
    ``exact``: whether llama.cpp can be made to run it. ``renamed``: transformers does not know the
    family; the model is one of ``model_type`` under this family's names (`renamed.py`)."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    rope: RopeScaling | None = YARN_4
    bound: float = 1e-6
    beyond: bool = True
    exact: bool = True
    renamed: str = ""

    @property
    def rotates(self) -> bool:
        unrotated = ("bloom", "gpt2", "gpt_bigcode", "mpt", "nemotron_h")
        return self.model_type not in unrotated

    @property
    def family(self) -> str:
        """The ``model_type`` that is converted."""
        return self.renamed or self.model_type


def _nested(full: dict[str, Any], base: float, sliding_base: float) -> dict[str, Any]:
    """Rope parameters by layer kind, of which the sliding one is not scaled."""
    return {
        "full_attention": {"rope_theta": base, **full},
        "sliding_attention": {"rope_type": "default", "rope_theta": sliding_base},
    }


_OWN_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_OWN_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "rope_theta": 1e6,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
}
_LATENT = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 48,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "n_shared_experts": 2,
}
_MINICPM3 = {
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "tie_word_embeddings": True,
}
_GPT_OSS = {
    "num_hidden_layers": 3,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "sliding_window": 32,
}
_GLM4_MOE = {
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "n_shared_experts": 2,
}
_GRANITE_MOE = {
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.0625,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
_GRANITE_MAMBA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "shared_intermediate_size": 96,
    "mamba_n_heads": 4,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
}
_NEMOTRON_H: dict[str, Any] = {
    "num_hidden_layers": None,
    "head_dim": 32,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
    "n_routed_experts": 6,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 40,
}
_FALCON_H1: dict[str, Any] = {
    "mamba_d_ssm": 96,
    "mamba_n_heads": 4,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.5,
    "key_multiplier": 0.7,
    "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.9,
    "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.6,
    "mlp_multipliers": [0.8, 0.4],
    "ssm_multipliers": [0.9, 1.1, 0.7, 1.3, 1.2],
}
# of so many heads none or nearly none of the scores is 0, so that hardly any are the same
_INDEXED: dict[str, Any] = {
    "n_group": 1,
    "topk_group": 1,
    "index_head_dim": 64,
    "index_n_heads": 16,
    "index_topk": 24,
}
_IN_BLOCKS: dict[str, Any] = {
    "head_dim": 32,
    "intermediate_size": 48,
    "dense_intermediate_size": 96,
    "shared_intermediate_size": 96,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "index_n_heads": 2,
    "index_head_dim": 32,
    "index_block_size": 16,
    "index_topk_blocks": 3,
    "layer_types": ["minimax_m3_sparse"] * 2,
    "mlp_layer_types": ["sparse"] * 2,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
    },
}
_HY_V3: dict[str, Any] = {
    "head_dim": 48,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}
_SHARED_CHOICE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "indexer_types": ["full", "shared", "full", "shared"],
}
_COMPRESSED: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "layer_types": [
        "sliding_attention",
        "compressed_sparse_attention",
        "heavily_compressed_attention",
        "compressed_sparse_attention",
    ],
    "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    "head_dim": 48,
    "partial_rotary_factor": 1 / 3,
    "q_lora_rank": 56,
    "o_groups": 2,
    "o_lora_rank": 24,
    "index_n_heads": 16,
    "index_head_dim": 64,
    "index_topk": 20,
    "sliding_window": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 64,
    "intermediate_size": None,
    "swiglu_limit": 1.5,
}
_GROWING = _OWN_YARN | {
    "rope_theta": 1e6,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.3,
    "max_position_embeddings": 256,
}
_OWN_GROWTH = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 64,
    "llama_4_scaling_beta": 0.3,
}
_LLAMA4 = {
    "num_hidden_layers": 4,
    "head_dim": 48,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "intermediate_size_mlp": 96,
}
_NARROW = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_AFMOE: dict[str, Any] = {
    "num_hidden_layers": 5,
    "head_dim": 48,
    "sliding_window": 32,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_shared_experts": 2,
    "moe_intermediate_size": 48,
    "route_scale": 2.5,
}
_LAGUNA: dict[str, Any] = {
    "num_hidden_layers": 5,
    "num_attention_heads_per_layer": [4, 6, 6, 2, 4],
    "layer_types": [*["full_attention"], *["sliding_attention"] * 3, "full_attention"],
    "head_dim": 48,
    "sliding_window": 32,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 64,
    "moe_routed_scaling_factor": 2.5,
}
_MIMO2: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 48,
    "v_head_dim": 32,
    "sliding_window": 33,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}
SEES_STEP3P7 = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "mlp_ratio": 1.0,
    "image_size": 56,
    "max_position_embeddings": 16,
}
SEES_MUSE = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "max_position_embeddings": 16,
}
_STEP3P5: dict[str, Any] = {
    "vision_config": SEES_STEP3P7,
    "num_hidden_layers": 5,
    "layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"],
    "num_sliding_attention_heads": 6,
    "head_dim": 48,
    "sliding_window": 32,
    "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 3,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "share_expert_dim": 64,
    "moe_router_scaling_factor": 2.5,
    "swiglu_limits": [None, None, 0.0, 0.3, 0.5],
    "swiglu_limits_shared": [0.4, 0.0, 0.0, 0.3, None],
    "rope_parameters": {
        "full_attention": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "partial_rotary_factor": 0.5,
        },
        "sliding_attention": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 1.0,
        },
    },
}
_GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 320,
    "sliding_window": 32,
    "tie_word_embeddings": True,
}
_DELTA_NET: dict[str, Any] = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention"] * 2 + ["full_attention"] * 2,
}
_HEADS = {"n_head": 4, "n_layer": 3, "seq_length": 64}
_MPT = {"n_heads": 4, "n_layers": 2, "d_model": 128, "max_seq_len": 64}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


def _quarter(*pairs: int) -> dict[str, Any]:
    """Rope parameters of which a quarter of each head rotates, in sections where any are given."""
    plain = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
    }
    return plain | ({"mrope_section": list(pairs)} if pairs else {})


def _own(kind: str, **parameters: Any) -> dict[str, Any]:
    """The checkpoint's own scaling, from 64 tokens to 256."""
    own = {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 64,
    } | parameters
    return {"rope_parameters": own, "max_position_embeddings": 256}


def sections(*pairs: int) -> dict[str, Any]:
    """Rope parameters with M-RoPE's sections: pairs by time, height and width."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(pairs)}


SEES_QWEN2 = {"depth": 1, "embed_dim": 32, "hidden_size": 128, "num_heads": 2}
SEES_QWEN2_5 = {
    "depth": 1,
    "hidden_size": 32,
    "out_hidden_size": 128,
    "num_heads": 2,
    "intermediate_size": 32,
    "fullatt_block_indexes": [0],
}
SEES_QWEN3 = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 32,
    "out_hidden_size": 128,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
SEES_KIMI = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
}
SEES_MINIMAX = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "image_size": 28,
}
SEES_GLM4 = {
    "depth": 1,
    "hidden_size": 32,
    "out_hidden_size": 128,
    "num_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
}


SEES_QWEN3_5 = {
    key: value for key, value in SEES_QWEN3.items() if "deepstack" not in key
}


def _seeing(vision: dict[str, Any], *pairs: int, **config: Any) -> dict[str, Any]:
    return {"vision_config": vision, "rope_parameters": sections(*pairs), **config}


ROWS = {
    "afmoe": Row("afmoe", _AFMOE | {"mup_enabled": True}),
    "afmoe-without-mup": Row("afmoe", _AFMOE | {"num_dense_layers": 2}),
    "afmoe-tied": Row("afmoe", _AFMOE | {"tie_word_embeddings": True}),
    "apertus": Row(
        "apertus",
        _own("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
        rope=None,
    ),
    "arcee": Row("arcee", {"head_dim": 48}),
    "arcee-own": Row(
        "arcee",
        _own("yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, mscale=1.0),
        None,
    ),
    "bloom": Row("bloom", _HEADS, None, beyond=False),
    "bloom-6-heads": Row(
        "bloom", {**_HEADS, "n_head": 6, "hidden_size": 96}, None, beyond=False
    ),
    "cohere": Row("cohere", {"tie_word_embeddings": True, "logit_scale": 0.5}),
    "cohere-plus": Row(
        "cohere",
        _NARROW
        | {
            "num_hidden_layers": 64,
            "use_qk_norm": True,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
        },
    ),
    "cohere2": Row(
        "cohere2",
        {
            "num_hidden_layers": 5,
            "sliding_window": 32,
            "tie_word_embeddings": True,
            "logit_scale": 0.5,
        },
    ),
    "ernie4_5": Row("ernie4_5", {"head_dim": 48, "tie_word_embeddings": True}),
    "deepseek_v2": Row("deepseek_v2", _LATENT),
    "deepseek_v2-lite-mscale": Row(
        "deepseek_v2",
        _LATENT
        | {
            "q_lora_rank": None,
            "max_position_embeddings": 256,
            "rope_parameters": _OWN_YARN
            | {"rope_theta": 1e4, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
        None,
    ),
    "deepseek_v3": Row("deepseek_v3", _LATENT | {"n_group": 4, "topk_group": 2}),
    "deepseek_v3-mscale": Row(
        "deepseek_v3",
        _LATENT
        | {
            "n_group": 4,
            "topk_group": 2,
            "max_position_embeddings": 256,
            "rope_parameters": _OWN_YARN
            | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        None,
    ),
    "deepseek_v3-linear": Row(
        "deepseek_v3",
        _LATENT | {"n_group": 1, "topk_group": 1},
        RopeScaling("linear", factor=4),
    ),
    "kimi-k2-betas": Row(
        "deepseek_v3",
        _LATENT
        | {
            "n_group": 1,
            "topk_group": 1,
            "max_position_embeddings": 256,
            "rope_parameters": _OWN_YARN
            | {
                "rope_theta": 1e4,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 1.0,
                "beta_slow": 1.0,
            },
        },
        None,
    ),
    "deepseek_v32": Row("deepseek_v32", _LATENT | _INDEXED),
    "deepseek_v32-all": Row("deepseek_v32", _LATENT | _INDEXED | {"index_topk": 2048}),
    "deepseek_v4": Row(
        "deepseek_v4",
        _COMPRESSED,
        RopeScaling("yarn", factor=4, attention_factor=1.0),
    ),
    "deepseek_v4-own": Row(
        "deepseek_v4",
        _COMPRESSED
        | {
            "layer_types": [
                "heavily_compressed_attention",
                "heavily_compressed_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
            ],
            "max_position_embeddings": 256,
            "index_topk": 512,
            "rope_parameters": _OWN_YARN | {"beta_fast": 32, "beta_slow": 1},
        },
        None,
    ),
    "dots1": Row(
        "dots1", _GLM4_MOE | {"num_key_value_heads": 4, "norm_topk_prob": True}
    ),
    "ernie4_5_moe": Row(
        "ernie4_5_moe",
        {
            "num_hidden_layers": 3,
            "moe_num_experts": 8,
            "moe_k": 3,
            "moe_intermediate_size": 48,
            "moe_num_shared_experts": 2,
            "tie_word_embeddings": True,
        },
    ),
    "exaone": Row(
        "llama",
        {
            "rope_parameters": _OWN_LLAMA3,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
        },
        None,
        renamed="exaone",
    ),
    "exaone-tied": Row("llama", {"tie_word_embeddings": True}, renamed="exaone"),
    "exaone4-1.2b": Row(
        "exaone4",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 2,
            "rope_parameters": _OWN_LLAMA3,
            "max_position_embeddings": 256,
        },
        None,
    ),
    "exaone4-32b": Row(
        "exaone4",
        _NARROW
        | {
            "num_hidden_layers": 64,
            "sliding_window": 32,
            "initializer_range": 0.1,
            "rope_parameters": _OWN_LLAMA3,
            "max_position_embeddings": 256,
        },
        None,
    ),
    "falcon": Row("falcon", {"hidden_size": 128, "num_kv_heads": None, "alibi": False}),
    "falcon-40b": Row("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": Row(
        "falcon",
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
        },
    ),
    "falcon-many-kv": Row("falcon", {"multi_query": False, "ffn_hidden_size": 160}),
    "falcon_h1": Row("falcon_h1", _FALCON_H1),
    "falcon_h1-norms": Row(
        "falcon_h1",
        _FALCON_H1
        | {
            "head_dim": 48,
            "mamba_d_ssm": None,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "mamba_conv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "gemma": Row("gemma", {"head_dim": 48, "tie_word_embeddings": True}, bound=5e-6),
    "gemma2": Row(
        "gemma2",
        {
            "num_hidden_layers": 3,
            "head_dim": 48,
            "query_pre_attn_scalar": 48,
            "sliding_window": 32,
            "tie_word_embeddings": True,
        },
        bound=2e-6,
    ),
    "gemma2-27b": Row(
        "gemma2",
        _NARROW
        | {
            "num_hidden_layers": 46,
            "head_dim": 24,
            "query_pre_attn_scalar": 16,
            "sliding_window": 32,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
        },
    ),
    "gemma3_text": Row(
        "gemma3_text",
        {
            "num_hidden_layers": 7,
            "head_dim": 48,
            "query_pre_attn_scalar": 48,
            "sliding_window": 32,
            "tie_word_embeddings": True,
        },
        bound=1e-5,
    ),
    "gemma3_text-linear": Row(
        "gemma3_text",
        {
            "num_hidden_layers": 7,
            "head_dim": 48,
            "query_pre_attn_scalar": 48,
            "sliding_window": 32,
            "max_position_embeddings": 256,
            "final_logit_softcapping": 20.0,
            "rope_parameters": _nested(
                {"rope_type": "linear", "factor": 8.0}, 1e6, 1e4
            ),
        },
        None,
        1e-5,
        beyond=False,
    ),
    "gemma4_text": Row(
        "gemma4_text",
        _GEMMA4 | {"num_kv_shared_layers": 3, "use_double_wide_mlp": True},
        bound=4e-6,
    ),
    "gemma4_text-31b": Row(
        "gemma4_text",
        _GEMMA4
        | {
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "final_logit_softcapping": 30.0,
        },
        bound=4e-6,
    ),
    "gemma4_text-26b-a4b": Row(
        "gemma4_text",
        _GEMMA4
        | {
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 48,
        },
        None,
        bound=4e-6,
        beyond=False,
    ),
    "glm4": Row("glm4", {"head_dim": 48}),
    "glm4_moe_lite": Row("glm4_moe_lite", _LATENT),
    "glm4_moe": Row("glm4_moe", _GLM4_MOE | {"head_dim": 48, "attention_bias": True}),
    "glm4_moe-norms": Row(
        "glm4_moe", _GLM4_MOE | {"use_qk_norm": True, "routed_scaling_factor": 2.5}
    ),
    "glm4v": Row(
        "glm4v",
        {
            "vision_config": SEES_GLM4,
            "rope_parameters": sections(2, 3, 3) | {"partial_rotary_factor": 0.5},
        },
    ),
    "glm4v-whole": Row("glm4v", _seeing(SEES_GLM4, 4, 6, 6)),
    "glm4v_moe": Row(
        "glm4v_moe",
        _GLM4_MOE
        | {
            "vision_config": SEES_GLM4,
            "rope_parameters": sections(2, 3, 3) | {"partial_rotary_factor": 0.5},
        },
    ),
    "glm_moe_dsa": Row(
        "glm_moe_dsa",
        _LATENT | _INDEXED | _SHARED_CHOICE,
        RopeScaling("yarn", factor=4, attention_factor=1.0),
    ),
    "glm_moe_dsa-own": Row(
        "glm_moe_dsa", _LATENT | _INDEXED | {"index_topk": 40}, None, beyond=False
    ),
    "gpt_neox": Row("gpt_neox"),
    "gpt_neox-serial": Row(
        "gpt_neox", {"use_parallel_residual": False, "hidden_act": "gelu_fast"}
    ),
    "gpt2": Row("gpt2", {"tie_word_embeddings": True}, None, beyond=False),
    "gpt2-untied": Row("gpt2", {"n_inner": 96}, None, beyond=False),
    "gpt_bigcode": Row(
        "gpt_bigcode", {"tie_word_embeddings": True}, None, beyond=False
    ),
    "gpt_bigcode-many": Row("gpt_bigcode", {"multi_query": False}, None, beyond=False),
    "gpt_oss": Row(
        "gpt_oss",
        _GPT_OSS
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}},
    ),
    "gpt_oss-own": Row(
        "gpt_oss",
        _GPT_OSS
        | {
            "max_position_embeddings": 256,
            "head_dim": 64,
            "rope_parameters": _OWN_YARN | {"truncate": False, "rope_theta": 150000.0},
        },
        None,
        0.31,
        exact=False,
    ),
    "granite": Row(
        "granite",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.0625,
            "residual_multiplier": 0.8,
            "logits_scaling": 0.5,
            "tie_word_embeddings": True,
        },
    ),
    "granite-biases": Row("granite", {"attention_bias": True, "mlp_bias": True}),
    "granitemoe": Row("granitemoe", _GRANITE_MOE),
    "granitemoehybrid": Row(
        "granitemoehybrid",
        _GRANITE_MOE
        | {
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "layer_types": ["full_attention"] * 2,
            "position_embedding_type": "rope",
            "mamba_n_heads": 4,
        },
    ),
    "granitemoehybrid-experts": Row(
        "granitemoehybrid",
        _GRANITE_MOE
        | {
            "shared_intermediate_size": 96,
            "layer_types": ["full_attention"] * 2,
            "position_embedding_type": "rope",
            "mamba_n_heads": 4,
            "tie_word_embeddings": True,
        },
    ),
    "granitemoehybrid-mamba": Row(
        "granitemoehybrid",
        _GRANITE_MOE | _GRANITE_MAMBA | {"num_local_experts": 0},
        None,
        beyond=False,
    ),
    "granitemoehybrid-mamba-experts": Row(
        "granitemoehybrid",
        _GRANITE_MOE | _GRANITE_MAMBA | {"mamba_conv_bias": False},
        None,
        beyond=False,
    ),
    "granitemoehybrid-mamba-rope": Row(
        "granitemoehybrid",
        _GRANITE_MOE | _GRANITE_MAMBA | {"position_embedding_type": "rope"},
    ),
    "granitemoehybrid-nope": Row(
        "granitemoehybrid",
        _GRANITE_MOE
        | {
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "layer_types": ["full_attention"] * 2,
            "mamba_n_heads": 4,
        },
        None,
        beyond=False,
    ),
    "granitemoeshared": Row(
        "granitemoeshared", _GRANITE_MOE | {"shared_intermediate_size": 96}
    ),
    "hunyuan_v1_dense": Row("hunyuan_v1_dense", {"head_dim": 32}),
    "hunyuan_v1_dense-own": Row(
        "hunyuan_v1_dense",
        {
            "head_dim": 32,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 8.0,
                "factor": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 32,
                "beta_slow": 1,
            },
        },
        None,
        beyond=False,
    ),
    "hy_v3": Row("hy_v3", _HY_V3),
    "hy_v3-tied": Row(
        "hy_v3",
        _HY_V3
        | {
            "num_hidden_layers": 4,
            "mlp_layer_types": ["sparse", "dense", "sparse", "sparse"],
            "num_shared_experts": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "internlm2": Row("llama", renamed="internlm2"),
    "internlm2-groups": Row(
        "llama",
        {"num_attention_heads": 8, "num_key_value_heads": 4},
        renamed="internlm2",
    ),
    "internlm3": Row(
        "internlm3", {"head_dim": 48, "attention_bias": True, "mlp_bias": True}
    ),
    "laguna": Row("laguna", _LAGUNA),
    "laguna-without-windows": Row(
        "laguna",
        _LAGUNA
        | {
            "layer_types": None,
            "num_attention_heads_per_layer": None,
            "gating": "per-element",
            "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 2,
        },
    ),
    "laguna-own": Row(  # of 64 tokens, what 64 turns are of the published 4,096
        "laguna",
        _LAGUNA
        | {
            "head_dim": 128,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "full_attention": _OWN_YARN
                | {
                    "rope_theta": 5e5,
                    "partial_rotary_factor": 0.5,
                    "beta_fast": 1.0,
                    "beta_slow": 0.1,
                    "attention_factor": 1.0,
                },
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 1.0,
                },
            },
        },
        None,
    ),
    "lfm2": Row(
        "lfm2", {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
    ),
    "lfm2_moe": Row(
        "lfm2_moe",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention"] * 2,
            "num_dense_layers": 1,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
        },
    ),
    "kimi_k25": Row(
        "kimi_k25",
        _LATENT
        | {
            "vision_config": SEES_KIMI,
            "n_group": 1,
            "topk_group": 1,
            "max_position_embeddings": 256,
            "rope_parameters": _OWN_YARN
            | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        None,
    ),
    "llama": Row("llama"),
    "llama4_text": Row("llama4_text", _LLAMA4),
    "llama4_text-own": Row(
        "llama4_text",
        _LLAMA4
        | {
            "interleave_moe_layer_step": 2,
            "max_position_embeddings": 256,
            "rope_parameters": _OWN_LLAMA3 | {"high_freq_factor": 1.0},
        },
        None,
    ),
    "mimo_v2_flash": Row("mimo_v2_flash", _MIMO2),
    "mimo_v2_flash-groups": Row(
        "mimo_v2_flash",
        _MIMO2
        | {
            "n_group": 4,
            "topk_group": 2,
            "attention_value_scale": None,
            "mlp_layer_types": ["sparse", "dense", "sparse", "sparse"],
        },
    ),
    "minimax_m2": Row(
        "minimax_m2", {"head_dim": 48, "num_local_experts": 6, "num_experts_per_tok": 2}
    ),
    "minimax_m2-partial": Row(
        "minimax_m2",
        {
            "head_dim": 48,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "rotary_dim": 24,
        },
    ),
    "minimax_m3_vl": Row("minimax_m3_vl", _IN_BLOCKS | {"vision_config": SEES_MINIMAX}),
    "minimax_m3_vl-dense": Row(
        "minimax_m3_vl",
        _IN_BLOCKS
        | {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention"] + ["minimax_m3_sparse"] * 2,
            "mlp_layer_types": ["dense"] + ["sparse"] * 2,
            # all are chosen, so that rounding makes no other choice
            "index_topk_blocks": 16,
            "num_local_experts": 2,
            "vision_config": SEES_MINIMAX,
        },
        bound=3e-5,
    ),
    "minimax_m3_vl_text": Row(
        "minimax_m3_vl_text",
        _IN_BLOCKS | {"index_head_dim": 48, "index_local_blocks": 2},
    ),
    "minicpm3": Row("minicpm3", _MINICPM3),
    "minicpm3-own": Row(
        "minicpm3",
        _MINICPM3
        | {
            "rope_parameters": _LONGROPE
            | {
                "short_factor": [1 + 0.02 * i for i in range(8)],
                "long_factor": [1.05 + 0.6 * i for i in range(8)],
            },
            "max_position_embeddings": 256,
        },
        None,
    ),
    "ministral3": Row(
        "ministral3",
        {"max_position_embeddings": 256, "rope_parameters": _GROWING},
        None,
    ),
    "mistral": Row("mistral", {"sliding_window": None}),
    "mistral4": Row(
        "mistral4",
        _LATENT
        | {"first_k_dense_replace": 0, "max_position_embeddings": 256}
        | {"rope_parameters": _GROWING | {"rope_theta": 1e4}},
        None,
    ),
    "mistral4-groups": Row(
        "mistral4",
        _LATENT
        | {
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": _OWN_GROWTH,
            "routed_scaling_factor": 1.5,
        },
    ),
    "mixtral": Row("mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "mpt": Row("mpt", {**_MPT, "tie_word_embeddings": True}, None, beyond=False),
    "mpt-clipped": Row(
        "mpt",
        {
            **_MPT,
            "n_heads": 6,
            "hidden_size": 96,
            "attn_config": {"clip_qkv": 0.5},
        },
        None,
        beyond=False,
    ),
    "muse_glimmer": Row(
        "muse_glimmer",
        {
            "vision_config": SEES_MUSE,
            "num_hidden_layers": 5,
            "head_dim": 48,
            "sliding_window": 32,
        },
        RopeScaling("ntk", factor=4),
    ),
    "nemotron": Row("nemotron"),
    "nemotron-biases": Row("nemotron", {"attention_bias": True, "mlp_bias": True}),
    "nemotron_h": Row(
        "nemotron_h",
        _NEMOTRON_H
        | {
            "layers_block_type": "linear_attention mlp full_attention mlp "
            "linear_attention".split()
        },
        None,
        beyond=False,
    ),
    "nemotron_h-experts": Row(
        "nemotron_h",
        _NEMOTRON_H
        | {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "n_group": 2,
            "topk_group": 1,
        },
        None,
        beyond=False,
    ),
    "nemotron_h-latent": Row(
        "nemotron_h",
        _NEMOTRON_H
        | {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "moe_latent_size": 24,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": False,
            "use_conv_bias": False,
        },
        None,
        beyond=False,
    ),
    "olmo": Row("olmo"),
    "olmo-clipped": Row("olmo", {"clip_qkv": 1.5, "tie_word_embeddings": True}),
    "olmo2": Row("olmo2"),
    "olmo2-tied": Row("olmo2", {"tie_word_embeddings": True}),
    "olmo3": Row("olmo3", {"num_hidden_layers": 5, "sliding_window": 32}),
    "olmo3-own": Row(
        "olmo3",
        {
            "num_hidden_layers": 5,
            "sliding_window": 32,
            "max_position_embeddings": 256,
            "rope_parameters": _nested(_OWN_YARN | {"attention_factor": 1.2}, 5e5, 5e5),
        },
        None,
    ),
    "olmoe": Row(
        "olmoe", {"num_key_value_heads": 4, "num_experts": 6, "num_experts_per_tok": 2}
    ),
    "phi": Row("phi"),
    "phi3": Row(
        "phi3",
        {
            "rope_parameters": _LONGROPE
            | {
                "short_factor": [1 + 0.02 * i for i in range(16)],
                "long_factor": [1.05 + 0.6 * i for i in range(16)],
            },
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
        },
        None,
    ),
    "phi3-partial": Row(
        "phi3",
        {
            "rope_parameters": _LONGROPE
            | {
                "short_factor": [1 + 0.02 * i for i in range(12)],
                "long_factor": [1.05 + 0.6 * i for i in range(12)],
                "partial_rotary_factor": 0.75,
            },
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
        },
        None,
    ),
    "qwen2": Row("qwen2"),
    "qwen2_moe": Row("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 96}),
    "qwen2_5_vl": Row("qwen2_5_vl", _seeing(SEES_QWEN2_5, 4, 6, 6, rms_norm_eps=1e-6)),
    "qwen2_vl": Row("qwen2_vl", _seeing(SEES_QWEN2, 4, 6, 6, rms_norm_eps=1e-6)),
    "qwen3": Row("qwen3", {"head_dim": 24}),
    "qwen3_5": Row(
        "qwen3_5",
        _DELTA_NET
        | {"vision_config": SEES_QWEN3_5, "rope_parameters": _quarter(2, 1, 1)},
    ),
    "qwen3_5-27b": Row(  # heads, layers and the card's YaRN as in the published model
        "qwen3_5",
        {
            "num_hidden_layers": 4,
            "head_dim": 256,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 3,
            "rms_norm_eps": 1e-6,
            "vision_config": SEES_QWEN3_5,
            "max_position_embeddings": 256,
            "rope_parameters": _OWN_YARN
            | {
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.25,
                "mrope_section": [11, 11, 10],
                "mrope_interleaved": True,
            },
        },
        None,
    ),
    "qwen3_5_text": Row(
        "qwen3_5_text", _DELTA_NET | {"rope_parameters": _quarter(2, 1, 1)}
    ),
    "qwen3_5_moe": Row(
        "qwen3_5_moe",
        _DELTA_NET
        | EXPERTS
        | {
            "shared_expert_intermediate_size": 96,
            "vision_config": SEES_QWEN3_5,
            "rope_parameters": _quarter(2, 1, 1),
        },
    ),
    "qwen3_5_moe_text": Row(
        "qwen3_5_moe_text",
        _DELTA_NET
        | EXPERTS
        | {"shared_expert_intermediate_size": 40, "rope_parameters": _quarter(2, 1, 1)},
    ),
    "qwen3_next": Row(
        "qwen3_next",
        _DELTA_NET
        | EXPERTS
        | {"shared_expert_intermediate_size": 96, "rope_parameters": _quarter()},
    ),
    "qwen3_next-interval": Row(
        "qwen3_next",
        _DELTA_NET
        | EXPERTS
        | {
            "shared_expert_intermediate_size": 40,
            "linear_num_value_heads": 6,
            "head_dim": 48,
            "layer_types": None,
        },
    ),
    "qwen3_moe": Row("qwen3_moe", EXPERTS | {"norm_topk_prob": True}),
    "qwen3_vl": Row("qwen3_vl", _seeing(SEES_QWEN3, 6, 5, 5, head_dim=32)),
    "qwen3_vl-published": Row(
        "qwen3_vl", _seeing(SEES_QWEN3, 24, 20, 20, head_dim=128)
    ),
    "qwen3_vl_moe": Row("qwen3_vl_moe", EXPERTS | _seeing(SEES_QWEN3, 6, 5, 5)),
    "seed_oss": Row("seed_oss", {"head_dim": 48}),
    "smollm3": Row("smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "stablelm": Row("stablelm", {"use_qkv_bias": True}),
    "stablelm-12b": Row(
        "stablelm", {"qk_layernorm": True, "use_parallel_residual": True}
    ),
    "step3p7": Row("step3p7", _STEP3P5),
    "step3p7-own": Row(
        "step3p7",
        _STEP3P5
        | {
            "max_position_embeddings": 256,
            "rope_parameters": {
                "full_attention": _OWN_LLAMA3 | {"partial_rotary_factor": 0.5},
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 1.0,
                },
            },
        },
        None,
    ),
    "starcoder2": Row("starcoder2", {"tie_word_embeddings": True}),
}

#: Another name of a family, or a part of a model, that transformers' own class cannot make a text
#: model of.
WITHOUT_A_ROW = {"gemma3", "gemma4", "kimi_k2", "llama4", "mistral3", "step3p5"}
