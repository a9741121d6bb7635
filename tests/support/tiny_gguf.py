"""Tiny random models of several architectures, as GGUF files.

Some are written without a checkpoint, in forms that no converter of ours writes; of the others a
family's checkpoint is made and converted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from family_rows import SEES_MUSE, SEES_QWEN2, SEES_QWEN3, SEES_STEP3P7, sections

from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite, write_gguf
from ggext.rope.scaling import RopeScaling

N_EMBD, N_HEADS, N_KV, HEAD, N_FF, N_LAYERS, N_VOCAB = 64, 4, 2, 16, 96, 2, 320


@dataclass(frozen=True)
class Size:
    """How wide a model is. Heads have `HEAD` values whatever it is."""

    n_embd: int
    n_ff: int
    n_heads: int
    n_kv: int


TINY = Size(N_EMBD, N_FF, N_HEADS, N_KV)
#: Rows of 256 values, a whole block of every quantized type: llama.cpp's quantizer makes shorter
#: rows of another type.
WIDE = Size(n_embd=256, n_ff=256, n_heads=16, n_kv=8)


def vocabulary() -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [f"▁{i}" for i in range(N_VOCAB - len(tokens))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (N_VOCAB - 259)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * N_VOCAB,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def keys(arch: str, context: int = 64, size: Size = TINY) -> dict[str, Any]:
    values = {
        "context_length": context,
        "embedding_length": size.n_embd,
        "feed_forward_length": size.n_ff,
        "block_count": N_LAYERS,
        "attention.head_count": size.n_heads,
        "attention.head_count_kv": size.n_kv,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "vocab_size": N_VOCAB,
        "rope.dimension_count": HEAD,
        "rope.freq_base": 10000.0,
    }
    if arch.endswith("moe"):
        values |= {"expert_count": 4, "expert_used_count": 2}
        values |= {"expert_feed_forward_length": size.n_ff}
    if arch == "qwen2moe":
        values |= {"expert_shared_feed_forward_length": size.n_ff}
    return {f"{arch}.{k}": v for k, v in values.items()}


def shapes(
    arch: str, *, fused: bool = False, size: Size = TINY
) -> dict[str, tuple[int, ...]]:
    """Name → shape in PyTorch order, as llama.cpp's loader of ``arch`` creates them."""
    width, n_ff = size.n_embd, size.n_ff
    q, kv = size.n_heads * HEAD, size.n_kv * HEAD
    result: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (N_VOCAB, width),
        "output_norm.weight": (width,),
        "output.weight": (N_VOCAB, width),
    }
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (width,),
        "attn_output": (width, q),
        "ffn_norm": (width,),
    }
    rows = (
        {"attn_qkv": q + 2 * kv} if fused else {"attn_q": q, "attn_k": kv, "attn_v": kv}
    )
    layer |= {name: (count, width) for name, count in rows.items()}
    if arch.startswith("qwen3"):
        layer |= {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}
    if arch.endswith("moe"):
        layer |= {
            "ffn_gate_inp": (4, width),
            "ffn_gate_exps": (4, n_ff, width),
            "ffn_up_exps": (4, n_ff, width),
            "ffn_down_exps": (4, width, n_ff),
        }
    if arch == "qwen2moe":
        layer |= {
            "ffn_gate_inp_shexp": (width,),
            "ffn_gate_shexp": (n_ff, width),
            "ffn_up_shexp": (n_ff, width),
            "ffn_down_shexp": (width, n_ff),
        }
    if not arch.endswith("moe"):
        layer |= {
            "ffn_gate": (n_ff, width),
            "ffn_up": (n_ff, width),
            "ffn_down": (width, n_ff),
        }
    for i in range(N_LAYERS):
        result |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
        if arch.startswith("qwen2"):
            result |= {f"blk.{i}.{name}.bias": (count,) for name, count in rows.items()}
    return result


WRITTEN = ("llama", "mistral3", "qwen2", "qwen2moe", "qwen3", "qwen3moe")
GLM4_MOE = {
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
}
WHOLE = {"partial_rotary_factor": 1.0}
DELTA_NET: dict[str, Any] = {
    "head_dim": HEAD,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": HEAD,
    "linear_value_head_dim": HEAD,
    "layer_types": ["linear_attention", "full_attention"],
}
DELTA_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
NEMOTRON_H: dict[str, Any] = {
    "num_hidden_layers": None,
    "head_dim": HEAD,
    "mamba_num_heads": 4,
    "mamba_head_dim": HEAD,
    "ssm_state_size": HEAD,
    "n_groups": 2,
    "n_routed_experts": 4,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
}
LATENT = {
    "num_key_value_heads": N_HEADS,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": HEAD,
    "qk_rope_head_dim": HEAD,
    "v_head_dim": HEAD,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
IN_BLOCKS = {
    "head_dim": HEAD,
    "intermediate_size": 32,
    "dense_intermediate_size": 96,
    "shared_intermediate_size": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "index_n_heads": N_KV,
    "index_head_dim": HEAD,
    "index_block_size": 16,
    "index_topk_blocks": 3,
    "layer_types": ["full_attention", "minimax_m3_sparse"],
    "mlp_layer_types": ["dense", "sparse"],
}
INDEXED = {"index_head_dim": 64, "index_n_heads": 16, "index_topk": 24}
#: Architecture → a family that is converted to it, and what its configuration needs to be as small
#: as the others.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": (
        "afmoe",
        {
            "num_hidden_layers": 4,
            "head_dim": HEAD,
            "sliding_window": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "moe_intermediate_size": 32,
            "mup_enabled": True,
        },
    ),
    "apertus": ("apertus", {}),
    "arcee": ("arcee", {}),
    "bloom": ("bloom", {"n_head": N_HEADS, "n_layer": N_LAYERS, "seq_length": 64}),
    "command-r": ("cohere", {"tie_word_embeddings": True}),
    "cohere2": (
        "cohere2",
        {"num_hidden_layers": 4, "sliding_window": 64, "tie_word_embeddings": True},
    ),
    "deepseek2": ("deepseek_v3", LATENT),
    "deepseek32": ("deepseek_v32", LATENT | INDEXED),
    "deepseek4": (
        "deepseek_v4",
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "layer_types": [
                "sliding_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
            ],
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
            "head_dim": HEAD,
            "partial_rotary_factor": 0.5,
            "q_lora_rank": 32,
            "o_groups": 2,
            "o_lora_rank": 16,
            "index_head_dim": 64,
            "index_n_heads": 16,
            "index_topk": 24,
            "sliding_window": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "intermediate_size": None,
        },
    ),
    "dots1": ("dots1", GLM4_MOE | {"num_key_value_heads": N_HEADS}),
    "ernie4_5-moe": (
        "ernie4_5_moe",
        {
            "num_hidden_layers": N_LAYERS,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 32,
            "moe_num_shared_experts": 1,
        },
    ),
    "ernie4_5": ("ernie4_5", {"head_dim": HEAD}),
    "exaone": ("exaone", {}),
    "exaone4": (
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * N_LAYERS},
    ),
    "falcon": (
        "falcon",
        {
            "ffn_hidden_size": N_FF,
            "new_decoder_architecture": True,
            "num_kv_heads": N_KV,
        },
    ),
    "falcon-h1": (
        "falcon_h1",
        {
            "mamba_d_ssm": N_EMBD,
            "mamba_n_heads": 4,
            "mamba_d_state": HEAD,
            "key_multiplier": 0.5,
        },
    ),
    "gemma": ("gemma", {"head_dim": HEAD, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {"head_dim": HEAD, "query_pre_attn_scalar": HEAD, "tie_word_embeddings": True},
    ),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 6,
            "head_dim": HEAD,
            "query_pre_attn_scalar": HEAD,
            "sliding_window": 64,
            "tie_word_embeddings": True,
        },
    ),
    "gemma4": (
        "gemma4_text",
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "head_dim": HEAD,
            "global_head_dim": 2 * HEAD,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": N_VOCAB,
            "sliding_window": 64,
            "tie_word_embeddings": True,
        },
    ),
    "glm-dsa": ("glm_moe_dsa", LATENT | INDEXED),
    "glm4": ("glm4", {"head_dim": HEAD}),
    "glm4moe": ("glm4_moe", GLM4_MOE | {"use_qk_norm": True, "head_dim": HEAD}),
    "gpt-oss": (
        "gpt_oss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": HEAD},
    ),
    "gpt2": ("gpt2", {}),
    "gptneox": ("gpt_neox", {"rotary_pct": 0.5}),
    "granite": ("granite", {}),
    "granitehybrid": (
        "granitemoehybrid",
        {
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "position_embedding_type": "rope",
            "num_local_experts": 0,
            "shared_intermediate_size": N_FF,
            "mamba_n_heads": 4,
            "mamba_d_state": HEAD,
        },
    ),
    "granitemoe": ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "hunyuan-dense": ("hunyuan_v1_dense", {"head_dim": HEAD}),
    "internlm2": ("internlm2", {}),
    "laguna": (
        "laguna",
        {
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "num_attention_heads_per_layer": [2, 4, 2, 4],
            "num_key_value_heads": 2,
            "head_dim": HEAD,
            "sliding_window": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "lfm2": (
        "lfm2",
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    ),
    "lfm2moe": (
        "lfm2_moe",
        {
            "layer_types": ["conv", "full_attention"],
            "num_dense_layers": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "llama4": (
        "llama4_text",
        {"num_hidden_layers": 4, "num_local_experts": 4, "head_dim": HEAD},
    ),
    "mimo2": (
        "mimo_v2_flash",
        {
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "num_key_value_heads": 2,
            "head_dim": HEAD,
            "v_head_dim": HEAD,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 1e4} | WHOLE
                for kind in ("full_attention", "sliding_attention")
            },
            "sliding_window": 64,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "minicpm3": (
        "minicpm3",
        {
            "num_key_value_heads": N_HEADS,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "v_head_dim": HEAD,
            "qk_nope_head_dim": HEAD,
            "qk_rope_head_dim": HEAD,
            "tie_word_embeddings": True,
        },
    ),
    "hy_v3": (
        "hy_v3",
        {
            "head_dim": HEAD,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "minimax-m2": (
        "minimax_m2",
        {"head_dim": HEAD, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "minimax-m3": ("minimax_m3_vl_text", IN_BLOCKS),
    "mistral4": (
        "mistral4",
        LATENT
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 64,
                "llama_4_scaling_beta": 0.1,
            }
        },
    ),
    "mpt": ("mpt", {"n_heads": N_HEADS, "n_layers": N_LAYERS, "max_seq_len": 64}),
    "muse-glimmer": (
        "muse_glimmer",
        {
            "vision_config": SEES_MUSE,
            "num_hidden_layers": 4,
            "head_dim": HEAD,
            "sliding_window": 64,
        },
    ),
    "nemotron": ("nemotron", {}),
    "nemotron_h": (
        "nemotron_h",
        NEMOTRON_H
        | {"layers_block_type": ["linear_attention", "full_attention", "mlp"]},
    ),
    "nemotron_h_moe": (
        "nemotron_h",
        NEMOTRON_H
        | {"layers_block_type": ["linear_attention", "full_attention", "moe"]},
    ),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmoe": (
        "olmoe",
        {"num_key_value_heads": N_HEADS, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "phi2": ("phi", {}),
    "phi3": ("phi3", {}),
    "qwen2vl": (
        "qwen2_vl",
        {
            "vision_config": SEES_QWEN2,
            "rope_parameters": sections(2, 3, 3),
            "rms_norm_eps": 1e-6,
        },
    ),
    "qwen35": (
        "qwen3_5_text",
        DELTA_NET | {"rope_parameters": sections(3, 3, 2) | WHOLE},
    ),
    "qwen35moe": (
        "qwen3_5_moe_text",
        DELTA_NET | DELTA_EXPERTS | {"rope_parameters": sections(3, 3, 2) | WHOLE},
    ),
    "qwen3next": (
        "qwen3_next",
        DELTA_NET
        | DELTA_EXPERTS
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4} | WHOLE},
    ),
    "qwen3vl": (
        "qwen3_vl",
        {
            "vision_config": SEES_QWEN3,
            "rope_parameters": sections(3, 3, 2),
            "head_dim": HEAD,
        },
    ),
    "qwen3vlmoe": (
        "qwen3_vl_moe",
        {
            "vision_config": SEES_QWEN3,
            "rope_parameters": sections(3, 3, 2),
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "seed_oss": ("seed_oss", {"head_dim": HEAD}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
    "stablelm": ("stablelm", {"qk_layernorm": True, "partial_rotary_factor": 0.5}),
    "starcoder": ("gpt_bigcode", {}),
    "step35": (
        "step3p7",
        {
            "vision_config": SEES_STEP3P7,
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "head_dim": HEAD,
            "sliding_window": 64,
            "mlp_layer_types": ["dense"] + ["sparse"] * 3,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "share_expert_dim": 32,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 1e4}
                | {"partial_rotary_factor": share}
                for kind, share in (("full_attention", 0.5), ("sliding_attention", 1.0))
            },
        },
    ),
    "starcoder2": ("starcoder2", {"use_bias": True}),
}
_FOLDER = TemporaryDirectory()
_DTYPE = {0: "<f4", 26: "<i4"}


@cache
def _converted(arch: str, size: Size) -> GgufFile:
    """A tiny checkpoint of the family, converted without a scaling. It is called ``model``: where a
    file's name says phi3, the pinned llama.cpp changes the attributes of tokens that this vocabulary
    has not, and fails."""
    pytest.importorskip("transformers")
    from renamed import RENAMED, rename
    from tiny import make_model

    from ggext.convert import ConvertOptions, convert

    model_type, config = FAMILIES[arch]
    sizes = {
        "hidden_size": size.n_embd,
        "intermediate_size": size.n_ff,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": size.n_heads,
        "num_key_value_heads": size.n_kv,
    }
    if config.get("num_key_value_heads") == N_HEADS:  # as many as heads
        config = config | {"num_key_value_heads": size.n_heads}
    if config.get("index_n_heads") == N_KV:  # as many as keys
        config = config | {"index_n_heads": size.n_kv}
    folder = Path(_FOLDER.name, f"{arch}-{size.n_embd}")
    model = make_model(
        folder / "model", RENAMED.get(model_type, model_type), **sizes | config
    )
    if model_type in RENAMED:
        model = rename(model, folder / "renamed" / "model", model_type)
    out = folder / f"{arch}.gguf"
    convert(ConvertOptions(model, out, RopeScaling("none")))
    return read_gguf(out)


def base_of(
    arch: str, *, fused: bool = False, size: Size = TINY
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Metadata and tensors of a random float32 model, whose weights are large: attention is far
    from uniform."""
    if arch in FAMILIES:
        gguf = _converted(arch, size)
        fields = {
            key: field.value
            for key, field in gguf.fields.items()
            if key != "ggext.recipe"
        }
        arrays = {
            name: np.frombuffer(gguf.tensor_data(name), _DTYPE[info.type]).reshape(
                info.shape[::-1]
            )
            for name, info in gguf.tensors.items()
        }
        return fields, arrays
    assert arch in WRITTEN, f"tiny_gguf.FAMILIES has no {arch}"
    generator = np.random.default_rng(0)
    values = {
        name: (generator.normal(1.0 if "norm" in name else 0.0, 0.2, shape)).astype(
            "<f4"
        )
        for name, shape in shapes(arch, fused=fused, size=size).items()
    }
    general = {"general.architecture": arch, "general.name": arch}
    return general | keys(arch, size=size) | vocabulary(), values


def type_of(array: np.ndarray[Any, Any]) -> int:
    """ggml's number."""
    return next(kind for kind, dtype in _DTYPE.items() if array.dtype == dtype)


def write_random(
    path: Path,
    arch: str,
    *,
    fused: bool = False,
    size: Size = TINY,
    extra_keys: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray[Any, Any]] | None = None,
) -> Path:
    fields, arrays = base_of(arch, fused=fused, size=size)
    tensors = [
        TensorToWrite(
            name,
            array.shape[::-1],
            type_of(array),
            array.nbytes,
            lambda array=array: [array.tobytes()],
        )  # type: ignore[misc]
        for name, array in (arrays | (extra_tensors or {})).items()
    ]
    write_gguf(
        path,
        {k: Field.of(v) for k, v in (fields | (extra_keys or {})).items()},
        tensors,
    )
    return path
