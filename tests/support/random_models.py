"""Random valid configurations of a family, and random weights for them: what a differential test is
fed with.

The classes of transformers say what a configuration can hold: every flag of a class is turned now
and then, every number moved, and what stands in config.json is spelt in one of the ways in which
transformers reads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from family_rows import ROWS, sections
from tiny import NARROW, VOCABULARY, fill_what_is_zero, write_tokenizer

from ggext.proof.reference import judge_class

#: Keys that change no number of an evaluation, or that the sizes below decide.
_LEFT_ALONE = frozenset(
    "initializer_range use_cache bos_token_id eos_token_id pad_token_id model_type vocab_size "
    "hidden_size head_dim "
    "num_hidden_layers num_attention_heads num_key_value_heads intermediate_size "
    "max_position_embeddings layer_types "
    "rope_parameters output_router_logits router_aux_loss_coef router_jitter_noise "
    "input_jitter_noise pretraining_tp "
    "is_decoder qk_head_dim eod_token_id sep_token_id enable_moe_fp32_combine "
    "num_nextn_predict_layers "
    "num_mtp_modules".split()
)
_COMPRESSED_KINDS = ("sliding", "compressed_sparse", "heavily_compressed")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
#: Keys most of whose values llama.cpp cannot do, and which are turned less often.
_SELDOM = frozenset(
    "hidden_act activation topk_method scoring_func decoder_sparse_step mlp_only_layers "
    "no_rope_layer_interval "
    "clip_qkv moe_layer_interval no_rope_layers "
    "full_attn_idxs attn_logit_softcapping swiglu_alpha swiglu_limit scale_depth scale_emb "
    "dim_model_base "
    "sliding_window_pattern use_sliding_window block_ffn_dim_multiplier".split()
)
_FLIPPED = {
    "conv_bias": 0.02,
    "tie_word_embeddings": 0.3,
    "attention_bias": 0.2,
    "mlp_bias": 0.1,
    "norm_topk_prob": 0.1,
    "use_parallel_residual": 0.4,
    "new_decoder_architecture": 0.5,
    "use_qkv_bias": 0.5,
    "use_qk_norm": 0.5,
    "qk_layernorm": 0.2,
}
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k")
#: What a key is drawn from; a class that has not the key does not get it.
_DRAWN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"),
    "activation": ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu"),
    "sliding_window": (None, 24, 48, 4096),
    "attention_chunk_size": (24, 48, 8192),
    "q_lora_rank": (None, 32, 48),
    "kv_lora_rank": (32, 64),
    "qk_nope_head_dim": (16, 32),
    "qk_rope_head_dim": (8, 16, 24),
    "v_head_dim": (16, 24, 40),
    "moe_intermediate_size": (32, 48),
    "shared_expert_intermediate_size": (32, 80),
    "shared_intermediate_size": (0, 48),
    "intermediate_size_mlp": (64, 96),
    "n_shared_experts": (1, 2),
    "moe_num_shared_experts": (0, 1, 2),
    "num_shared_experts": (1, 2),
    "first_k_dense_replace": (0, 1, 2),
    "moe_layer_start_index": (0, 1),
    "moe_layer_end_index": (-1, -1, 30, 1),
    "moe_layer_interval": (1, 1, 2),
    "interleave_moe_layer_step": (1, 2),
    "moe_layers": (None,),
    "n_group": (1, 2, 4),
    "topk_group": (1, 2),
    "query_pre_attn_scalar": (16, 24, 32, 48),
    "clip_qkv": (None, 2.0),
    "attn_logit_softcapping": (None, 5.0, 50.0),
    "final_logit_softcapping": (30.0, 10.0),
    "no_rope_layer_interval": (2, 4, 4),
    "decoder_sparse_step": (1, 1, 2),
    "mlp_only_layers": ([], [], [0]),
    "num_kv_heads": (1, 2, 4),
    "num_ln_in_parallel_attn": (None, 1, 2),
    "ffn_hidden_size": (96, 160),
    "conv_L_cache": (2, 3, 4),
    "block_multiple_of": (16, 32),
    "layer_norm_eps": (1e-6, 1e-5, 1e-3),
    "rms_norm_eps": (1e-6, 1e-5, 1e-5, 1e-3),
    "norm_eps": (1e-6, 1e-5, 1e-3),
    "norm_epsilon": (1e-6, 1e-5, 1e-3),
    "layer_norm_epsilon": (1e-6, 1e-5, 1e-3),
    "scoring_func": ("softmax", "sigmoid"),
    "topk_method": ("greedy", "greedy", "group_limited_greedy"),
    "original_max_position_embeddings": (64,),
    "num_dense_layers": (0, 1, 2),
    "attention_value_scale": (None, 0.7, 1.5),
    "moe_router_logit_softcapping": (0.0,),
    "attention_multiplier": (0.0625, 0.125, 0.25),
    "residual_multiplier": (0.2, 1.0),
    "swiglu_alpha": (1.0,),
    "swiglu_limit": (5.0,),
    "scale_depth": (1.0,),
    "scale_emb": (10,),
    "dim_model_base": (128,),
    "use_sliding_window": (True,),
    "block_ffn_dim_multiplier": (1.0, 0.75),
    "linear_num_key_heads": (1, 2),
    "linear_num_value_heads": (2, 4, 6),
    "linear_key_head_dim": (8, 16, 32),
    "linear_conv_kernel_dim": (2, 3, 4),
    "floor_scale": (16, 8192),
    "attn_scale": (0.1, 0.5),
}


def random_config(model_type: str, random: Random) -> dict[str, Any]:
    """Arguments for the configuration's class of ``model_type``."""
    from transformers import AutoConfig, PretrainedConfig

    usual = json.loads(
        type(AutoConfig.for_model(model_type))().to_json_string(use_diff=False)
    )
    of_all = json.loads(PretrainedConfig().to_json_string(use_diff=False)).keys() - {
        "tie_word_embeddings"
    }
    config = _sizes(usual, random)
    for key, value in usual.items():
        if key in of_all:
            continue
        if key in _EXPERTS:
            config[key] = random.choice((4, 8))
        elif key in _CHOSEN:
            config[key] = random.choice((1, 2, 3))
        elif key in _DRAWN:
            if key not in _SELDOM or random.random() < 0.03:
                config[key] = random.choice(_DRAWN[key])
        elif key in _LEFT_ALONE:
            continue
        elif isinstance(value, bool) and random.random() < _FLIPPED.get(key, 0.1):
            config[key] = not value
        elif isinstance(value, float) and random.random() < 0.5 and "drop" not in key:
            config[key] = round(value * random.choice((0.5, 1.5, 2.0)), 6)
    config |= _rope(config, usual, random)
    if model_type in ("qwen3_5_text", "qwen3_5_moe_text"):
        config["rope_parameters"] = _in_sections(config, 0.25, random)
    return config | _what_belongs_together(model_type, config, random)


def random_model_config(model_type: str, random: Random) -> Any:
    """transformers' configuration, with a tiny vision part where the class has one."""
    from transformers import AutoConfig

    text_type = AutoConfig.for_model(model_type).get_text_config().model_type
    if text_type == model_type:
        return AutoConfig.for_model(model_type, **random_config(model_type, random))
    row = next(row for row in ROWS.values() if row.model_type == model_type)
    text = random_config(text_type, random)
    if "mrope_section" in row.config.get("rope_parameters", {}):
        text["rope_parameters"] = _in_sections(text, 1.0, random)
    vision = dict(row.config["vision_config"])
    size_key = "out_hidden_size" if "out_hidden_size" in vision else "hidden_size"
    if text_type not in ("minimax_m3_vl_text", "muse_glimmer_text", "step3p5"):
        vision[size_key] = text["hidden_size"]
    if text_type in ("qwen2_vl_text", "qwen2_5_vl_text"):  # llama.cpp computes with 0
        text["rms_norm_eps"] = random.choice((0.0, 1e-6, 1e-6, 1e-5))
    tied = text.pop("tie_word_embeddings", random.random() < 0.3)
    more = NARROW.get(model_type, {})
    return AutoConfig.for_model(
        model_type,
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=tied,
        **more,
    )


def _in_sections(text: dict[str, Any], share: float, random: Random) -> dict[str, Any]:
    """Rope parameters with sections of what rotates of a head, ``share`` where nothing says."""
    parameters = text.get("rope_parameters", sections())
    if parameters.get("mrope_section"):
        return parameters
    head = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
    pairs = int(head * parameters.get("partial_rotary_factor", share)) // 2
    first, second = sorted(random.choices(range(pairs + 1), k=2))
    return {**parameters, "mrope_section": [first, second - first, pairs - second]}


def _sizes(usual: dict[str, Any], random: Random) -> dict[str, Any]:
    heads = random.choice((1, 2, 3, 4, 6, 8))
    head_dim = random.choice((8, 16, 24, 32, 48))
    config: dict[str, Any] = {
        "vocab_size": VOCABULARY + random.choice((0, 0, 7, 64)),
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": random.choice(
            [n for n in range(1, heads + 1) if heads % n == 0]
        ),
        "num_hidden_layers": random.randint(1, 6),
        "intermediate_size": random.choice((32, 72, 96, 160)),
        "max_position_embeddings": random.choice((64, 128, 256)),
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    if "head_dim" in usual and random.random() < 0.3:
        config["head_dim"] = random.choice((8, 16, 24, 32, 40, 64))
    elif usual.get("head_dim") is not None:
        config["head_dim"] = head_dim
    return config


def _what_belongs_together(
    model_type: str, config: dict[str, Any], random: Random
) -> dict[str, Any]:
    """What a class does not check and its model cannot do without."""
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    fixed: dict[str, Any] = {}
    if "kv_lora_rank" in config:
        if random.random() < 0.9:
            fixed["rms_norm_eps"] = 1e-6
        fixed |= {"num_key_value_heads": heads, "head_dim": config["qk_rope_head_dim"]}
        if config.get("q_lora_rank") is None and config.get("attention_bias"):
            fixed["attention_bias"] = False
    if "n_group" in config and "n_routed_experts" in config:
        groups = random.choice((1, 2, 4)) if model_type == "deepseek_v3" else 1
        fixed |= {
            "n_routed_experts": 8,
            "n_group": groups,
            "topk_group": min(2, groups),
            "num_experts_per_tok": 3,
        }
        if groups == 4:
            fixed["num_experts_per_tok"] = 4
    if model_type == "falcon":
        fixed["num_kv_heads"] = (
            config["num_key_value_heads"]
            if config.get("new_decoder_architecture")
            else heads
        )
        if not config.get("new_decoder_architecture"):
            fixed["num_ln_in_parallel_attn"] = None
    if model_type == "mistral4":  # whose class finds the share and the size itself
        config.pop("head_dim", None)
        del fixed["head_dim"]
        config["rope_parameters"].pop("partial_rotary_factor", None)
    if model_type in ("gemma2", "gemma3_text"):
        usual = config.get("head_dim", 256)
        fixed |= {
            "query_pre_attn_scalar": usual if random.random() < 0.95 else 20,
            "sliding_window": config.get("sliding_window") or 40,
        }
    if model_type == "gemma4_text":
        kinds = ["sliding_attention", "full_attention"]
        own = max(2, layers - random.choice((0, 0, 1, 2)))
        fixed |= {
            "num_hidden_layers": max(layers, 2),
            "layer_types": [*random.choices(kinds, k=own - 2), *kinds]
            + [random.choice(kinds) for _ in range(max(layers, 2) - own)],
            "num_kv_shared_layers": max(layers, 2) - own,
            "sliding_window": config.get("sliding_window") or 40,
            "head_dim": config.get("head_dim", 32),
            "global_head_dim": 2 * config.get("head_dim", 32),
            "hidden_size_per_layer_input": random.choice((0, 8)),
            "vocab_size_per_layer_input": config["vocab_size"],
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
            "use_bidirectional_attention": "vision" if random.random() < 0.2 else None,
        }
        fixed["layer_types"][-1] = "full_attention"
    if model_type in ("cohere2", "gpt_oss", "olmo3") and not config.get(
        "sliding_window"
    ):
        fixed["sliding_window"] = 40
    if model_type == "exaone4":
        window = random.choice((None, None, None, None, 40))
        fixed |= {
            "sliding_window": window,
            "layer_types": ["full_attention"] * layers if window is None else None,
        }
        fixed["sliding_window_pattern"] = 4
    if model_type == "llama4_text":
        fixed |= {
            "num_hidden_layers": random.choice((4, 5, 8)),
            "attention_chunk_size": 8192,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        }
    if model_type in ("dots1", "olmoe") and random.random() < 0.9:
        fixed["num_key_value_heads"] = heads
    if model_type == "qwen3_moe":
        fixed["norm_topk_prob"] = random.random() < 0.9
    if (
        model_type
        in (
            "cohere2",
            "nemotron",
            "olmo2",
            "olmo3",
            "phi",
            "phi3",
            "lfm2",
            "lfm2_moe",
            "exaone4",
        )
        and random.random() < 0.9
    ):
        fixed["head_dim"] = (
            config["hidden_size"] // heads
        )  # a free one is refused, mostly
    if model_type == "cohere2" and random.random() < 0.9:
        fixed["tie_word_embeddings"] = True
    if model_type == "granitemoehybrid":
        share = random.choice((0.0, 0.5))
        fixed |= {
            "layer_types": _either("linear_attention", share, layers, random),
            "position_embedding_type": "rope" if random.random() < 0.6 else None,
            "num_local_experts": random.choice((0, 4)),
            **_mamba2(random, heads="mamba_n_heads", groups="mamba_n_groups"),
            "mamba_d_state": random.choice((8, 24)),
            "mamba_expand": 2 if random.random() < 0.95 else 1,
            "mamba_d_head": "auto",
        }
    if model_type in ("deepseek_v32", "glm_moe_dsa"):
        fixed |= {
            "index_head_dim": random.choice((64, 128)),
            "index_n_heads": 16,
            "index_topk": random.choice((20, 50, 2048)),
        }
    if model_type == "glm_moe_dsa":
        kinds = random.choices(("full", "shared"), k=layers - 1)
        fixed["indexer_types"] = ["full", *kinds]
    if model_type == "minimax_m3_vl_text":
        size = random.choice((32, 48))
        dense = random.random() < 0.05  # which would be refused
        kinds = ["full_attention" if dense else "minimax_m3_sparse"] * layers
        fixed |= {
            "intermediate_size": size,
            "shared_intermediate_size": size * random.choice((1, 2)),
            "dense_intermediate_size": 96,
            "index_n_heads": config["num_key_value_heads"],
            "index_head_dim": random.choice((48, 64)),
            "index_block_size": random.choice((8, 16, 16, 32, 24)),
            "index_topk_blocks": random.choice((2, 3, 16)),
            "index_local_blocks": random.choice((0, 1, 2)),
            "layer_types": kinds,
            "mlp_layer_types": ["sparse"] * layers,
        }
    if model_type == "deepseek_v4":
        fixed |= _compressed(layers, heads, random)
    if model_type == "falcon_h1":
        fixed |= {
            "mamba_d_ssm": random.choice((None, 64, 96)),
            **_mamba2(random, heads="mamba_n_heads", groups="mamba_n_groups"),
            "mamba_d_state": random.choice((8, 24)),
            "mamba_d_head": "auto",
            "mamba_norm_before_gate": random.random() < 0.1,
            "mlp_multipliers": [random.uniform(0.3, 2), random.uniform(0.3, 2)],
            "ssm_multipliers": [random.uniform(0.3, 2) for _ in range(5)],
            "embedding_multiplier": random.uniform(0.5, 4),
            "key_multiplier": random.uniform(0.3, 2),
            "attention_in_multiplier": random.uniform(0.3, 2),
        }
        config["mamba_d_ssm"] = fixed["mamba_d_ssm"]
    if model_type == "nemotron_h":
        wide = random.choice(("mlp", "moe"))
        kinds = ["linear_attention", "full_attention", wide]
        fixed |= {
            "layers_block_type": kinds[: 2 + (random.random() < 0.8)]
            + random.choices(kinds, k=layers),
            "num_hidden_layers": None,
            **_mamba2(random, heads="mamba_num_heads", groups="n_groups"),
            "mamba_head_dim": random.choice((8, 16)),
            "ssm_state_size": random.choice((8, 24)),
            "moe_shared_expert_intermediate_size": 40,
            "moe_latent_size": random.choice((None, 24)),
            "use_bias": random.random() < 0.05,
            "mamba_proj_bias": False,
        }
        config.pop("num_hidden_layers")
    if model_type == "hunyuan_v1_dense":
        fixed["head_dim"] = config.get("head_dim", 24)
    if model_type == "mimo_v2_flash":
        kinds = ("sliding_attention", "full_attention")
        fixed |= {
            "head_dim": random.choice((12, 24, 48)),
            "num_attention_heads": random.choice((2, 4))
            * config["num_key_value_heads"],
            "layer_types": [kinds[0], *random.choices(kinds, k=layers - 1)],
            "sliding_window": config.get("sliding_window") or 33,
        }
    if model_type == "step3p5":
        kinds = ("sliding_attention", "full_attention")
        limits = (None, 0.0, 0.4)
        fixed |= {
            "layer_types": [kinds[0], *random.choices(kinds, k=layers - 1)],
            "mlp_layer_types": random.choices(("dense", "sparse"), k=layers),
            "num_sliding_attention_heads": random.choice((1, 2, 3))
            * config["num_key_value_heads"],
            "sliding_window": config.get("sliding_window") or 40,
            "share_expert_dim": random.choice((32, 48)),
            "query_pre_attn_scalar": config.get("head_dim", 128),
            "swiglu_limits": random.choices(limits, k=layers),
            "swiglu_limits_shared": random.choices(limits, k=layers),
        }
        if "rope_parameters" not in config:
            config["rope_parameters"] = {
                kind: {
                    "rope_type": "default",
                    "rope_theta": random.choice((1e4, 1e6)),
                    "partial_rotary_factor": random.choice((0.5, 1.0)),
                }
                for kind in kinds
            }
    if model_type == "laguna":
        kinds = ("sliding_attention", "full_attention")
        fixed |= {
            "layer_types": [random.choice(kinds) for _ in range(layers)],
            "num_attention_heads_per_layer": [
                random.choice((1, 2, 3)) * config["num_key_value_heads"]
                for _ in range(layers)
            ],
            "gating": random.choice((True, "per-head", "per-element")),
            "sliding_window": config.get("sliding_window") or 40,
        }
    if "linear_key_head_dim" in config:
        fixed |= {
            "linear_value_head_dim": config["linear_key_head_dim"]
            if random.random() < 0.95
            else 24,
            "layer_types": [
                random.choice(("linear_attention", "full_attention"))
                for _ in range(layers)
            ],
            "rms_norm_eps": random.choice((1e-6, 1e-6, 1e-5, 1e-4)),
        }
        fixed["layer_types"][:2] = ["linear_attention", "full_attention"][:layers]
    if model_type in ("lfm2", "lfm2_moe"):
        fixed["layer_types"] = [
            random.choice(("conv", "full_attention")) for _ in range(layers)
        ]
        fixed["layer_types"][:2] = ["conv", "full_attention"][:layers]
    if (
        model_type
        in ("ministral3", "mistral", "mixtral", "starcoder2", "phi3", "dots1", "phimoe")
        and random.random() < 0.6
    ):
        fixed["sliding_window"] = None
    return {
        k: v
        for k, v in fixed.items()
        if v is not None or k in ("sliding_window", "num_ln_in_parallel_attn")
    }


def _compressed(layers: int, heads: int, random: Random) -> dict[str, Any]:
    """DeepSeek 4's sizes; a model without layers of both compressed kinds is refused."""
    kinds = [f"{kind}_attention" for kind in _COMPRESSED_KINDS]
    layers = max(layers, 2)
    chosen = kinds[1:] + random.choices(kinds, k=layers - 2)
    random.shuffle(chosen)
    by_token = random.choice((0, 1, layers))
    return {
        "num_hidden_layers": layers,
        "num_key_value_heads": 1,
        "layer_types": chosen,
        "mlp_layer_types": ["hash_moe"] * by_token + ["moe"] * (layers - by_token),
        "head_dim": random.choice((16, 32, 48, 64)),
        "partial_rotary_factor": random.choice((0.25, 0.5, None)),
        "q_lora_rank": random.choice((32, 48)),
        "o_groups": random.choice((1, heads)),
        "o_lora_rank": random.choice((16, 24)),
        "index_head_dim": random.choice((64, 128)),
        "index_n_heads": 16,
        "index_topk": random.choice((20, 512)),
        "sliding_window": random.choice((24, 48, 4096)),
        "hc_mult": 4 if random.random() < 0.95 else 2,
        "hc_sinkhorn_iters": random.choice((1, 3, 20)),
        "hc_eps": random.choice((1e-6, 1e-3)),
        "swiglu_limit": random.choice((0.5, 10.0)),
        "scoring_func": "sqrtsoftplus" if random.random() < 0.95 else "sigmoid",
        "n_shared_experts": 1,
    }


def _either(kind: str, share: float, layers: int, random: Random) -> list[str]:
    """A kind for each layer: ``kind`` by chance, or attention; both where there may be."""
    kinds = [
        kind if random.random() < share else "full_attention" for _ in range(layers)
    ]
    if share:
        kinds[:2] = [kind, "full_attention"][:layers]
    return kinds


def _mamba2(random: Random, heads: str, groups: str) -> dict[str, int]:
    """Heads of Mamba 2 by their key, and groups of them by theirs."""
    count = random.choice((2, 4))
    return {heads: count, groups: random.choice((1, 2, count))}


def _rope(
    config: dict[str, Any], usual: dict[str, Any], random: Random
) -> dict[str, Any]:
    """Rope parameters, and the context that they are for."""
    parameters: dict[str, Any] = {
        "rope_theta": random.choice((10000.0, 1e6, 500.0)),
        "rope_type": "default",
    }
    own = usual.get("rope_parameters") or {}
    kind = random.choice(
        ("", "", "default", "default", "linear", "yarn", "yarn", "llama3", "longrope")
    )
    if not kind and "llama_4_scaling_beta" not in own:
        return {}
    if "original_max_position_embeddings" in usual:  # Phi 3, whose class takes no other
        kind = random.choice(("default", "longrope"))
    original = {"original_max_position_embeddings": 64}
    extra = {"max_position_embeddings": 256}
    rotated = int(
        config.get("qk_rope_head_dim")
        or config.get("head_dim")
        or config["hidden_size"] // config["num_attention_heads"]
    )
    if "partial_rotary_factor" in own or random.random() < 0.05:
        parameters["partial_rotary_factor"] = random.choice((0.25, 0.5, 0.75, 1.0))
        rotated = int(rotated * parameters["partial_rotary_factor"])
    if kind == "linear":
        parameters |= {"rope_type": kind, "factor": 4.0}
    elif kind == "llama3":
        parameters |= original | {
            "rope_type": kind,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
    elif kind == "longrope":
        pairs = rotated // 2
        parameters |= original | {
            "rope_type": kind,
            "short_factor": [1 + 0.02 * i for i in range(pairs)],
            "long_factor": [1.05 + 0.6 * i for i in range(pairs)],
        }
    elif kind == "yarn":
        parameters |= original | {"rope_type": kind, "factor": 4.0}
        for key, values in (
            ("attention_factor", (1.0, 1.2)),
            ("beta_fast", (16.0, 32.0)),
            ("beta_slow", (1.0, 2.0)),
            ("truncate", (True, False)),
            ("mscale", (0.707, 1.0)),
            ("mscale_all_dim", (0.707, 1.0)),
        ):
            if random.random() < 0.25:
                parameters[key] = random.choice(values)
    if "llama_4_scaling_beta" in own:  # whose class takes no silence
        parameters |= original | {"llama_4_scaling_beta": random.choice((0.1, 0.3))}
    if "full_attention" in own:
        sliding = {
            "rope_type": "default",
            "rope_theta": random.choice((10000.0, parameters["rope_theta"])),
        }
        parameters = {"full_attention": parameters, "sliding_attention": sliding}
        shares = own["full_attention"].get("rope_type") == "default"
        if shares and "partial_rotary_factor" in own["full_attention"]:
            for values in parameters.values():
                values["partial_rotary_factor"] = random.choice((0.5, 0.5, 1.0))
    return {"rope_parameters": parameters} | ({} if kind == "default" else extra)


def make_random_model(folder: Path, config: Any, seed: int) -> None:
    """Weights in which every norm, bias and buffer counts."""
    import torch

    torch.manual_seed(seed)
    model = judge_class(config).from_config(config).float()
    stored = set(model.state_dict())
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if (
            name in stored
            and values.is_floating_point()
            and ("bias" in name or "norm" in name)
        ):
            torch.nn.init.normal_(
                values, 1.0 if "norm" in name and "bias" not in name else 0.0, 0.2
            )
    fill_what_is_zero(model)
    model.save_pretrained(folder)
    write_tokenizer(folder)


def respell(folder: Path, random: Random) -> None:
    """config.json as older programs or a lazy author write it: each means the same to transformers,
    or what transformers then makes of it is what counts."""
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    values = whole.get(
        "text_config", whole
    )  # the part of the text, where there are parts
    parameters = values.get("rope_parameters")
    if (
        isinstance(parameters, dict)
        and "rope_theta" in parameters
        and random.random() < 0.5
    ):
        rope = {k: v for k, v in parameters.items() if k != "rope_theta"}
        del values["rope_parameters"]
        values["rope_theta"] = parameters["rope_theta"]
        if "partial_rotary_factor" in rope:
            values["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        if random.random() < 0.5:
            rope["type"] = rope.pop("rope_type")
        values["rope_scaling"] = None if list(rope.values()) == ["default"] else rope
    for key, value in list(values.items()):
        is_size = type(value) is int and key != "num_key_value_heads"
        if is_size or key in (
            "model_type",
            "layer_types",
            "rope_scaling",
            "rope_parameters",
        ):
            continue
        if random.random() < (0.5 if value is None else 0.08):
            del values[key]
    path.write_text(json.dumps(whole, indent=1))


def gelu_of_ggml(values: Any) -> Any:
    """The tanh approximation through a table of float16 values, which ggml's CPU code looks its
    GELU up in."""
    import torch

    inner = (
        torch.nn.functional.gelu(values.half().float(), approximate="tanh")
        .half()
        .float()
    )
    return torch.where(values <= -10, 0.0, torch.where(values >= 10, values, inner))
