"""Tiny random models of several architectures, written as GGUF files without a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ggext.gguf.types import Field
from ggext.gguf.writer import TensorToWrite, write_gguf

N_EMBD, N_HEADS, N_KV, HEAD, N_FF, N_LAYERS, N_VOCAB = 64, 4, 2, 16, 96, 2, 320


def vocabulary() -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [f"▁{i}" for i in range(N_VOCAB - len(tokens))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (N_VOCAB - 259)
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * N_VOCAB, "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip


def keys(arch: str, context: int = 64) -> dict[str, Any]:
    values = {
        "context_length": context, "embedding_length": N_EMBD, "feed_forward_length": N_FF, "block_count": N_LAYERS,
        "attention.head_count": N_HEADS, "attention.head_count_kv": N_KV, "attention.key_length": HEAD,
        "attention.value_length": HEAD, "attention.layer_norm_rms_epsilon": 1e-6, "vocab_size": N_VOCAB,
        "rope.dimension_count": HEAD, "rope.freq_base": 10000.0,
    }  # fmt: skip
    if arch.endswith("moe"):
        values |= {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": N_FF}
    if arch == "qwen2moe":
        values |= {"expert_shared_feed_forward_length": N_FF}
    return {f"{arch}.{k}": v for k, v in values.items()}


def shapes(arch: str, *, fused: bool = False) -> dict[str, tuple[int, ...]]:
    """Name → shape in PyTorch order, as llama.cpp's loader of ``arch`` creates them."""
    q, kv = N_HEADS * HEAD, N_KV * HEAD
    result: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (N_VOCAB, N_EMBD), "output_norm.weight": (N_EMBD,), "output.weight": (N_VOCAB, N_EMBD),
    }  # fmt: skip
    layer: dict[str, tuple[int, ...]] = {"attn_norm": (N_EMBD,), "attn_output": (N_EMBD, q), "ffn_norm": (N_EMBD,)}
    rows = {"attn_qkv": q + 2 * kv} if fused else {"attn_q": q, "attn_k": kv, "attn_v": kv}
    layer |= {name: (count, N_EMBD) for name, count in rows.items()}
    if arch.startswith("qwen3"):
        layer |= {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}
    if arch.endswith("moe"):
        layer |= {
            "ffn_gate_inp": (4, N_EMBD), "ffn_gate_exps": (4, N_FF, N_EMBD), "ffn_up_exps": (4, N_FF, N_EMBD),
            "ffn_down_exps": (4, N_EMBD, N_FF),
        }  # fmt: skip
    if arch == "qwen2moe":
        layer |= {
            "ffn_gate_inp_shexp": (N_EMBD,), "ffn_gate_shexp": (N_FF, N_EMBD), "ffn_up_shexp": (N_FF, N_EMBD),
            "ffn_down_shexp": (N_EMBD, N_FF),
        }  # fmt: skip
    if not arch.endswith("moe"):
        layer |= {"ffn_gate": (N_FF, N_EMBD), "ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
    for i in range(N_LAYERS):
        result |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
        if arch.startswith("qwen2"):
            result |= {f"blk.{i}.{name}.bias": (count,) for name, count in rows.items()}
    return result


def write_random(
    path: Path,
    arch: str,
    *,
    fused: bool = False,
    extra_keys: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray[Any, Any]] | None = None,
) -> Path:
    """A random float32 model, with weights large enough for attention to be far from uniform."""
    generator = np.random.default_rng(0)
    values = {
        name: (generator.normal(1.0 if "norm" in name else 0.0, 0.2, shape)).astype("<f4")
        for name, shape in shapes(arch, fused=fused).items()
    } | (extra_tensors or {})
    fields = {"general.architecture": arch, "general.name": arch} | keys(arch) | vocabulary() | (extra_keys or {})
    tensors = [
        TensorToWrite(name, array.shape[::-1], 0, array.nbytes, lambda array=array: [array.tobytes()])  # type: ignore[misc]
        for name, array in values.items()
    ]
    write_gguf(path, {k: Field.of(v) for k, v in fields.items()}, tensors)
    return path
