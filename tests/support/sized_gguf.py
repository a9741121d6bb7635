"""GGUF files of real models' sizes that take no space: true headers over holes, several
architectures.

llama.cpp opens them with ``no_alloc``, which does everything but touch the tensors' memory, and
logs what it would take.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.gguf.header import pack_header, packed_length, roomy_length
from ggext.gguf.types import F16, F32, I32, Field, TensorInfo, aligned, tensor_nbytes
from ggext.llama_cpp_facts.compressed import COMPRESSED
from ggext.llama_cpp_facts.indexer import IN_BLOCKS, INDEXED
from ggext.llama_cpp_facts.recurrent import (
    DELTA_NETS,
    MAMBAS,
    NEMOTRONS,
    recurrent_layers,
)

if TYPE_CHECKING:
    from ggext.runtime import llama

_NORMS = {
    **dict.fromkeys(DELTA_NETS, ("attn_norm", "post_attention_norm")),
    **dict.fromkeys(("cohere2", *NEMOTRONS), ("attn_norm",)),
    "gpt-oss": ("attn_norm", "post_attention_norm"),
    "seed_oss": ("attn_norm", "post_attention_norm"),
    "glm4moe": ("attn_norm", "post_attention_norm"),
    "olmo2": ("post_attention_norm", "post_ffw_norm"),
} | dict.fromkeys(
    ("gemma2", "gemma3"),
    ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"),
)
_LAYER_NORM = ("cohere2", "starcoder2")
_NORMED_HEADS = (
    *DELTA_NETS,
    "lfm2",
    "dots1",
    "qwen3",
    "qwen3moe",
    "gemma3",
    "olmo2",
    "olmoe",
    *IN_BLOCKS,
)
_BIASED_CHOICE = (
    "dots1",
    "ernie4_5-moe",
    "glm4moe",
    "nemotron_h_moe",
    *INDEXED,
    *IN_BLOCKS,
)
_WITHOUT_GATE = ("phi3", "starcoder2", *NEMOTRONS)


@dataclass(frozen=True)
class Shape:
    """The numbers of a model; ``keys`` go into the header as they stand, without the architecture's
    prefix."""

    arch: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    ff: int
    vocab: int
    type: int = F16
    keys: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    fused: bool = False
    biases: bool = False
    experts: tuple[int, int, int] | None = None  # count, used, their width
    shared_ff: int = 0
    dense_lead: int = 0
    mla: tuple[int, int, int, int] | None = (
        None  # rank of q (0: none), rank of kv, rope dimensions, value head
    )


_GEMMA2 = {
    "attention.sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GRANITE = {
    "attention.scale": 0.015625,
    "embedding_scale": 12.0,
    "residual_scale": 0.22,
    "logit_scale": 8.0,
}
_COHERE2 = {"attention.sliding_window": 4096, "logit_scale": 0.25}
_ONE_WINDOW_IN_TWO = {"attention.sliding_window": 128}
_CHOSEN = {
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
    "leading_dense_block_count": 1,
}

_INDEXED = {
    "attention.indexer.head_count": 64,
    "attention.indexer.key_length": 128,
    "attention.indexer.top_k": 2048,
    "expert_gating_func": 2,
    "expert_weights_norm": True,
}
_IN_BLOCKS = {
    "attention.indexer.head_count": 4,
    "attention.indexer.key_length": 128,
    "attention.indexer.top_k": 16,
    "attention.indexer.block_size": 128,
    "attention.indexer.local_blocks": 1,
    "leading_dense_block_count": 3,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_weights_scale": 2.0,
    "expert_weights_norm": True,
    "rope.dimension_count": 64,
}
_COMPRESSED = {
    "attention.indexer.head_count": 64,
    "attention.indexer.key_length": 128,
    "attention.indexer.top_k": 512,
    "attention.sliding_window": 128,
    "attention.q_lora_rank": 1024,
    "attention.output_group_count": 8,
    "attention.output_lora_rank": 1024,
    "attention.compress_ratios": [0, 0, 4, 128, 4, 128],
    "attention.compress_rope_freq_base": 160000.0,
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 20,
    "hyper_connection.epsilon": 1e-6,
    "hash_layer_count": 3,
    "expert_shared_count": 1,
    "expert_gating_func": 4,
    "expert_weights_scale": 1.5,
    "expert_weights_norm": True,
    "swiglu_clamp_exp": [10.0] * 6,
    "rope.dimension_count": 64,
}
_SECTIONS = {"rope.dimension_sections": [11, 11, 10, 0]}
_GRANITE_ATTENDS = (5, 15, 25, 35)
_LFM2_ATTENDS = (2, 5, 8, 10, 12, 14)


def _delta_net(n_keys: int, n_values: int) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": 4,
        "ssm.state_size": 128,
        "ssm.group_count": n_keys,
        "ssm.time_step_rank": n_values,
        "ssm.inner_size": 128 * n_values,
        "rope.dimension_count": 64,
        "full_attention_interval": 4,
    }


def _mamba2(heads: int, groups: int, state: int, inner: int) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": 4,
        "ssm.state_size": state,
        "ssm.group_count": groups,
        "ssm.time_step_rank": heads,
        "ssm.inner_size": inner,
    }


def _one_thing_each(pattern: str, kv_heads: int, ff: int) -> dict[str, Any]:
    """Of Nemotron-H: the layers as its configuration names them."""
    return {
        "attention.head_count_kv": [kv_heads * (kind == "*") for kind in pattern],
        "feed_forward_length": [ff * (kind in "-E") for kind in pattern],
        "attention.layer_norm_epsilon": 1e-5,
    }


#: Sizes of published models.
SHAPES = {
    "llama-3-8b": Shape("llama", 32, 4096, 32, 8, 128, 14336, 128256),
    "llama-2-7b": Shape("llama", 32, 4096, 32, 32, 128, 11008, 32000),
    "llama-3.2-1b": Shape("llama", 16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "mixtral-8x7b": Shape(
        "llama", 32, 4096, 32, 8, 128, 14336, 32000, experts=(8, 2, 14336)
    ),
    "mistral-nemo": Shape("mistral3", 40, 5120, 32, 8, 128, 14336, 131072),
    "qwen2.5-7b": Shape("qwen2", 28, 3584, 28, 4, 128, 18944, 152064, biases=True),
    "qwen2-moe": Shape(
        "qwen2moe",
        24,
        2048,
        16,
        16,
        128,
        5632,
        151936,
        biases=True,
        experts=(60, 4, 1408),
        shared_ff=5632,
    ),
    "qwen2-vl-7b": Shape(
        "qwen2vl",
        28,
        3584,
        28,
        4,
        128,
        18944,
        152064,
        biases=True,
        keys={"rope.dimension_sections": [16, 24, 24, 0]},
    ),
    "qwen3-4b": Shape("qwen3", 36, 2560, 32, 8, 128, 9728, 151936, tied=True),
    "qwen3-30b-a3b": Shape(
        "qwen3moe", 48, 2048, 32, 4, 128, 6144, 151936, experts=(128, 8, 768)
    ),
    "qwen3-next-80b-a3b": Shape(
        "qwen3next",
        48,
        2048,
        16,
        2,
        256,
        5120,
        151936,
        experts=(512, 10, 512),
        shared_ff=512,
        keys=_delta_net(16, 32) | {"expert_shared_feed_forward_length": 512},
    ),
    "qwen3.5-27b": Shape(
        "qwen35",
        64,
        5120,
        24,
        4,
        256,
        17408,
        248320,
        keys=_delta_net(16, 48) | _SECTIONS,
    ),
    "qwen3.5-35b-a3b": Shape(
        "qwen35moe",
        40,
        2048,
        16,
        2,
        256,
        512,
        248320,
        experts=(256, 8, 512),
        shared_ff=512,
        keys=_delta_net(16, 32)
        | _SECTIONS
        | {"expert_shared_feed_forward_length": 512},
    ),
    "lfm2-1.2b": Shape(
        "lfm2",
        16,
        2048,
        32,
        8,
        64,
        8192,
        65536,
        tied=True,
        keys={
            "shortconv.l_cache": 3,
            "attention.head_count_kv": [
                8 if i in _LFM2_ATTENDS else 0 for i in range(16)
            ],
        },
    ),
    "gemma-2b": Shape("gemma", 18, 2048, 8, 1, 256, 16384, 256000, tied=True),
    "gemma-2-9b": Shape(
        "gemma2", 42, 3584, 16, 8, 256, 14336, 256000, tied=True, keys=_GEMMA2
    ),
    "gemma-3-4b": Shape(
        "gemma3",
        34,
        2560,
        8,
        4,
        256,
        10240,
        262144,
        tied=True,
        keys={"attention.sliding_window": 1024},
    ),
    "phi-3-mini": Shape("phi3", 32, 3072, 32, 32, 96, 8192, 32064, fused=True),
    "deepseek-v2-lite": Shape(
        "deepseek2",
        27,
        2048,
        16,
        1,
        192,
        10944,
        102400,
        experts=(64, 6, 1408),
        shared_ff=1408,
        dense_lead=1,
        mla=(0, 512, 64, 128),
    ),
    "deepseek-v3-8-layers": Shape(
        "deepseek2",
        8,
        7168,
        128,
        1,
        192,
        18432,
        129280,
        experts=(256, 8, 2048),
        shared_ff=2048,
        dense_lead=3,
        mla=(1536, 512, 64, 128),
    ),
    "deepseek-v3.2-6-layers": Shape(
        "deepseek32",
        6,
        7168,
        128,
        1,
        192,
        18432,
        129280,
        experts=(256, 8, 2048),
        shared_ff=2048,
        dense_lead=3,
        mla=(1536, 512, 64, 128),
        keys=_INDEXED,
    ),
    "deepseek-v4-flash-6-layers": Shape(
        "deepseek4",
        6,
        4096,
        64,
        1,
        512,
        2048,
        129280,
        experts=(256, 6, 2048),
        shared_ff=2048,
        keys=_COMPRESSED,
    ),
    "minimax-m3-8-layers": Shape(
        "minimax-m3",
        8,
        6144,
        64,
        4,
        128,
        12288,
        200064,
        experts=(128, 4, 3072),
        shared_ff=3072,
        dense_lead=3,
        keys=_IN_BLOCKS,
    ),
    "glm-5-8-layers": Shape(
        "glm-dsa",
        8,
        6144,
        64,
        1,
        256,
        12288,
        154880,
        experts=(256, 8, 2048),
        shared_ff=2048,
        dense_lead=3,
        mla=(2048, 512, 64, 256),
        keys=_INDEXED
        | {
            "attention.indexer.head_count": 32,
            "attention.indexer.types": [True, True, True] + [False] * 3 + [True, False],
        },
    ),
    "gpt-oss-20b": Shape(
        "gpt-oss",
        24,
        2880,
        64,
        8,
        64,
        2880,
        201088,
        biases=True,
        experts=(32, 4, 2880),
        keys=_ONE_WINDOW_IN_TWO,
    ),
    "granite-2b": Shape(
        "granite", 40, 2048, 32, 8, 64, 8192, 49155, tied=True, keys=_GRANITE
    ),
    "granite-4.0-h-tiny": Shape(
        "granitehybrid",
        40,
        1536,
        12,
        4,
        128,
        512,
        100352,
        tied=True,
        experts=(64, 6, 512),
        shared_ff=1024,
        keys=_GRANITE
        | _mamba2(48, 1, 128, 3072)
        | {
            "expert_shared_feed_forward_length": 1024,
            "rope.scaling.finetuned": False,
            "attention.head_count_kv": [
                4 if i in _GRANITE_ATTENDS else 0 for i in range(40)
            ],
        },
    ),
    "falcon-h1-1.5b": Shape(
        "falcon-h1", 24, 2048, 8, 2, 128, 4096, 65537, keys=_mamba2(48, 1, 256, 3072)
    ),
    "nemotron-h-8b": Shape(
        "nemotron_h",
        52,
        4096,
        32,
        8,
        128,
        21504,
        131072,
        keys=_mamba2(128, 8, 128, 8192)
        | _one_thing_each("M-M-M-M*-" + "M-M-M-M-M*-" * 3 + "M-M-M-M-M-", 8, 21504),
    ),
    "nemotron-3-nano-30b-a3b": Shape(
        "nemotron_h_moe",
        52,
        2688,
        32,
        2,
        128,
        1856,
        131072,
        experts=(128, 6, 1856),
        shared_ff=3712,
        keys=_mamba2(64, 8, 128, 4096)
        | {
            "expert_shared_feed_forward_length": 3712,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
        }
        | _one_thing_each(
            "MEMEM*E" + "MEMEM*E" * 4 + "MEMEMEM*E" + "MEMEMEME", 2, 1856
        ),
    ),
    "smollm3-3b": Shape("smollm3", 36, 2048, 16, 4, 128, 11008, 128256, tied=True),
    "starcoder2-3b": Shape(
        "starcoder2", 30, 3072, 24, 2, 128, 12288, 49152, biases=True
    ),
    "command-r7b": Shape(
        "cohere2", 32, 4096, 32, 8, 128, 14336, 256000, tied=True, keys=_COHERE2
    ),
    "olmo-2-7b": Shape("olmo2", 32, 4096, 32, 32, 128, 11008, 100352),
    "glm-4.5-air-8-layers": Shape(
        "glm4moe",
        8,
        4096,
        96,
        8,
        128,
        10944,
        151552,
        biases=True,
        experts=(128, 8, 1408),
        shared_ff=1408,
        dense_lead=1,
        keys=_CHOSEN | {"rope.dimension_count": 64},
    ),
    "olmoe-7b-a1b": Shape(
        "olmoe", 16, 2048, 16, 16, 128, 1024, 50304, experts=(64, 8, 1024)
    ),
    "ernie-4.5-21b-a3b": Shape(
        "ernie4_5-moe",
        28,
        2560,
        20,
        4,
        128,
        12288,
        103424,
        tied=True,
        experts=(64, 6, 1536),
        shared_ff=3072,
        dense_lead=1,
        keys=_CHOSEN
        | {"interleave_moe_layer_step": 1, "expert_shared_feed_forward_length": 3072},
    ),
    "dots1-8-layers": Shape(
        "dots1",
        8,
        4096,
        32,
        32,
        128,
        10944,
        152064,
        experts=(128, 6, 1408),
        shared_ff=2816,
        dense_lead=1,
        keys=_CHOSEN | {"expert_shared_count": 2},
    ),
    "seed-oss-36b": Shape("seed_oss", 64, 5120, 80, 8, 128, 27648, 155136, biases=True),
}


def tensors(s: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape in GGUF order, as llama.cpp's loader of the architecture asks for them."""
    yield "token_embd.weight", (s.width, s.vocab)
    yield (
        ("token_embd_norm.weight" if s.arch == "lfm2" else "output_norm.weight"),
        (s.width,),
    )
    if s.arch == "starcoder2":
        yield "output_norm.bias", (s.width,)
    if not s.tied:
        yield "output.weight", (s.width, s.vocab)
    if s.arch in COMPRESSED:
        yield from _streams(s, "output_hc", s.keys["hyper_connection.count"], 1)
    for i, recurs in enumerate(recurrent_layers(s.arch, s.keys, s.layers)):
        mixer = _mixer if recurs else _attention
        parts = [mixer(s), _norms(s, recurs), _feed_forward(s, i)]
        if s.arch in COMPRESSED:
            parts[0] = _compressed(s, i)
        if s.arch in IN_BLOCKS and i >= s.dense_lead:
            parts.append(_index(s))
        if s.arch == "falcon-h1":  # which is both
            parts.append(_attention(s))
        if s.arch in NEMOTRONS:  # one of them
            parts = [_norms(s, recurs), mixer(s)]
            if s.keys["feed_forward_length"][i]:
                parts[1] = _feed_forward(s, i)
        for name, shape in chain.from_iterable(parts):
            yield f"blk.{i}.{name}", shape


def _mixer(s: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A delta net, a short convolution, or Mamba 2."""
    if s.arch == "lfm2":
        yield "shortconv.conv.weight", (s.keys["shortconv.l_cache"], s.width)
        yield "shortconv.in_proj.weight", (s.width, 3 * s.width)
        yield "shortconv.out_proj.weight", (s.width, s.width)
        return
    state, heads = s.keys["ssm.state_size"], s.keys["ssm.time_step_rank"]
    inner = s.keys["ssm.inner_size"]
    groups = s.keys["ssm.group_count"]
    channels = inner + 2 * state * groups
    if s.arch in MAMBAS:
        yield "ssm_in.weight", (s.width, inner + channels + heads)
        yield "ssm_conv1d.weight", (s.keys["ssm.conv_kernel"], channels)
        yield "ssm_conv1d.bias", (channels,)
        yield "ssm_dt.bias", (heads,)
        yield "ssm_a", (1, heads)
        yield "ssm_d", (1, heads)
        if s.arch != "falcon-h1":
            yield "ssm_norm.weight", (inner // groups, groups)
        yield "ssm_out.weight", (inner, s.width)
        return
    yield "attn_qkv.weight", (s.width, channels)
    yield "attn_gate.weight", (s.width, inner)
    yield "ssm_conv1d.weight", (s.keys["ssm.conv_kernel"], channels)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (heads,)
    if s.arch == "qwen3next":
        yield "ssm_ba.weight", (s.width, 2 * heads)
    else:
        yield "ssm_beta.weight", (s.width, heads)
        yield "ssm_alpha.weight", (s.width, heads)
    yield "ssm_norm.weight", (state,)
    yield "ssm_out.weight", (inner, s.width)


def _streams(
    s: Shape, name: str, made: int, scales: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """``made``: values of a token that mix its residual streams."""
    yield f"{name}_fn.weight", (s.keys["hyper_connection.count"] * s.width, made)
    yield f"{name}_base.weight", (made,)
    yield f"{name}_scale.weight", (scales,)


def _compressed(s: Shape, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Attention to a window and to compressed tokens."""
    rank, made = s.keys["attention.q_lora_rank"], s.keys["attention.output_lora_rank"]
    groups, streams = (
        s.keys["attention.output_group_count"],
        s.keys["hyper_connection.count"],
    )
    yield "attn_sinks.weight", (s.heads,)
    yield "attn_q_a.weight", (s.width, rank)
    yield "attn_q_a_norm.weight", (rank,)
    yield "attn_q_b.weight", (rank, s.heads * s.head)
    yield "attn_kv.weight", (s.width, s.head)
    yield "attn_kv_a_norm.weight", (s.head,)
    yield "attn_output_a.weight", (s.heads * s.head // groups, made * groups)
    yield "attn_output_b.weight", (groups * made, s.width)
    for part in ("attn", "ffn"):
        yield from _streams(s, f"hc_{part}", (2 + streams) * streams, 3)
    ratio = s.keys["attention.compress_ratios"][layer]
    halves = 2 if ratio == 4 else 1
    if ratio:
        yield from _compressor(s, "attn_compressor", s.head, halves, ratio)
    if ratio == 4:
        size = s.keys["attention.indexer.key_length"]
        heads = s.keys["attention.indexer.head_count"]
        yield "indexer.proj.weight", (s.width, heads)
        yield "indexer.attn_q_b.weight", (rank, heads * size)
        yield from _compressor(s, "indexer_compressor", size, halves, ratio)
    if layer < s.keys["hash_layer_count"]:
        assert s.experts is not None
        yield "ffn_gate_tid2eid.weight", (s.experts[1], s.vocab)


def _index(s: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What chooses blocks of tokens."""
    size = s.keys["attention.indexer.key_length"]
    heads = s.keys["attention.indexer.head_count"]
    for kind, count in (("q", heads), ("k", 1)):
        yield f"indexer.{kind}_proj.weight", (s.width, count * size)
        yield f"indexer.{kind}_norm.weight", (size,)


def _compressor(
    s: Shape, name: str, size: int, halves: int, ratio: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for kind in ("kv", "gate"):
        yield f"{name}_{kind}.weight", (s.width, halves * size)
    yield f"{name}_ape.weight", (halves * size, ratio)
    yield f"{name}_norm.weight", (size,)


def _attention(s: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    if s.mla:
        yield from _latent_attention(s, *s.mla)
        return
    q, kv = s.heads * s.head, s.kv_heads * s.head
    made = 2 * q if s.arch in DELTA_NETS else q  # queries, and the gates of the result
    rows = (
        {"attn_qkv": q + 2 * kv}
        if s.fused
        else {"attn_q": made, "attn_k": kv, "attn_v": kv}
    )
    for name, n in rows.items():
        yield f"{name}.weight", (s.width, n)
        if s.biases:
            yield f"{name}.bias", (n,)
    yield "attn_output.weight", (q, s.width)
    if s.arch in ("gpt-oss", "starcoder2"):
        yield "attn_output.bias", (s.width,)
    if s.arch == "gpt-oss":
        yield "attn_sinks.weight", (s.heads,)


def _latent_attention(
    s: Shape, q_rank: int, rank: int, rope: int, value: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    if q_rank:
        yield "attn_q_a.weight", (s.width, q_rank)
        yield "attn_q_a_norm.weight", (q_rank,)
    yield (
        ("attn_q_b.weight" if q_rank else "attn_q.weight"),
        (q_rank or s.width, s.heads * s.head),
    )
    yield "attn_kv_a_mqa.weight", (s.width, rank + rope)
    yield "attn_kv_a_norm.weight", (rank,)
    yield "attn_k_b.weight", (s.head - rope, rank, s.heads)
    yield "attn_v_b.weight", (rank, value, s.heads)
    yield "attn_output.weight", (s.heads * value, s.width)
    if s.arch in INDEXED:  # some layers need none, and the loader takes it of all
        size = s.keys["attention.indexer.key_length"]
        heads = s.keys["attention.indexer.head_count"]
        yield "indexer.k_norm.weight", (size,)
        yield "indexer.k_norm.bias", (size,)
        yield "indexer.proj.weight", (s.width, heads)
        yield "indexer.attn_k.weight", (s.width, size)
        yield "indexer.attn_q_b.weight", (q_rank, heads * size)


def _norms(s: Shape, recurs: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in _NORMS.get(s.arch, ("attn_norm", "ffn_norm")):
        kind = "" if (s.arch, name) == ("falcon-h1", "ffn_norm") else ".weight"
        yield f"{name}{kind}", (s.width,)
        if s.arch == "starcoder2":
            yield f"{name}.bias", (s.width,)
    if s.arch in _NORMED_HEADS and not recurs:
        whole = s.arch in ("olmo2", "olmoe")  # all heads as one
        yield "attn_q_norm.weight", (s.heads * s.head if whole else s.head,)
        yield "attn_k_norm.weight", (s.kv_heads * s.head if whole else s.head,)


def _feed_forward(s: Shape, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    if s.experts is None or layer < s.dense_lead:
        if s.arch not in _WITHOUT_GATE:
            yield "ffn_gate.weight", (s.width, s.ff)
        yield "ffn_up.weight", (s.width, 2 * s.ff if s.arch == "phi3" else s.ff)
        yield "ffn_down.weight", (s.ff, s.width)
        if s.arch == "starcoder2":
            yield "ffn_up.bias", (s.ff,)
            yield "ffn_down.bias", (s.width,)
        return
    count, _, ff = s.experts
    yield "ffn_gate_inp.weight", (s.width, count)
    for name, shape in (
        ("gate", (s.width, ff)),
        ("up", (s.width, ff)),
        ("down", (ff, s.width)),
    ):
        if name == "gate" and s.arch in _WITHOUT_GATE:
            continue
        yield f"ffn_{name}_exps.weight", (*shape, count)
        if s.arch == "gpt-oss":
            yield f"ffn_{name}_exps.bias", (shape[1], count)
    if s.arch == "gpt-oss":
        yield "ffn_gate_inp.bias", (count,)
    if s.arch in _BIASED_CHOICE or layer >= s.keys.get("hash_layer_count", layer + 1):
        yield "exp_probs_b.bias", (count,)
    if s.shared_ff:
        for name, shape in (
            ("gate", (s.width, s.shared_ff)),
            ("up", (s.width, s.shared_ff)),
            ("down", (s.shared_ff, s.width)),
        ):
            if name == "gate" and s.arch in _WITHOUT_GATE:
                continue
            yield f"ffn_{name}_shexp.weight", shape
    if s.shared_ff and s.arch in ("qwen2moe", *DELTA_NETS):
        yield "ffn_gate_inp_shexp.weight", (s.width,)


def header_keys(s: Shape) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "context_length": 131072,
        "embedding_length": s.width,
        "feed_forward_length": s.ff,
        "block_count": s.layers,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.kv_heads,
        "attention.key_length": s.head,
        "attention.value_length": s.head,
        "vocab_size": s.vocab,
        "rope.dimension_count": s.head,
        "rope.freq_base": 10000.0,
        f"attention.layer_norm_{'' if s.arch in _LAYER_NORM else 'rms_'}epsilon": 1e-6,
    }
    if s.experts:
        count, used, ff = s.experts
        keys |= {
            "expert_count": count,
            "expert_used_count": used,
            "expert_feed_forward_length": ff,
        }
    if s.arch == "qwen2moe":
        keys["expert_shared_feed_forward_length"] = s.shared_ff
    if s.mla:
        q_rank, rank, rope, value = s.mla
        keys |= {
            "attention.kv_lora_rank": rank,
            "attention.key_length": rank + rope,
            "attention.value_length": rank,
            "attention.key_length_mla": s.head,
            "attention.value_length_mla": value,
            "rope.dimension_count": rope,
            "attention.head_count_kv": 1,
            "leading_dense_block_count": s.dense_lead,
            "expert_shared_count": 1,
            "expert_weights_scale": 1.0,
            "expert_gating_func": 1,
        }
        if q_rank:
            keys["attention.q_lora_rank"] = q_rank
    return {f"{s.arch}.{k}": v for k, v in (keys | s.keys).items()}


#: Ends of the names of what is not of the file's type.
_FLOAT32 = (
    ".bias",
    "conv1d.weight",
    "shortconv.conv.weight",
    "ssm_norm.weight",
    "ssm_a",
    "ssm_d",
)


def write_sized(path: Path, s: Shape) -> Path:
    """The header of such a model, with a hole where the tensors would be."""
    infos, offset = [], 0
    for name, shape in tensors(s):
        kind = (
            s.type
            if len(shape) > 1 and not name.endswith(_FLOAT32) and "gate_inp" not in name
            else F32
        )
        if name.endswith("tid2eid.weight"):
            kind = I32
        info = TensorInfo(name, shape, kind, offset, tensor_nbytes(name, shape, kind))
        infos.append(info)
        offset = aligned(offset + info.nbytes, 32)
    fields = {
        "general.architecture": s.arch,
        "tokenizer.ggml.model": "no_vocab",
    } | header_keys(s)
    values = {k: Field.of(v) for k, v in fields.items()}
    header = pack_header(values, infos, roomy_length(packed_length(values, infos), 32))
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + offset)
    return path


@dataclass(frozen=True)
class Allocated:
    """What llama.cpp says that it allocates, in bytes (logged to a hundredth of a MiB)."""

    weights: int
    cache: int
    compute: int
    output: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.compute + self.output


@contextmanager
def opened(path: Path) -> Iterator[Callable[..., Allocated]]:
    """The file, opened without its tensors: a function that makes a context, with its parameters'
    fields as arguments.

    Raises RuntimeError with the log's end when llama.cpp refuses.
    """
    from ggext.runtime import llama

    module = llama.lib()
    params = module.llama_model_default_params()
    params.no_alloc, params.n_gpu_layers = True, 0
    params.load_mode = 0  # no mapping: the file is a hole
    with llama.listening() as log:
        model = module.llama_model_load_from_file(str(path).encode(), params)
    try:
        if not model:
            raise RuntimeError(_text(log)[-2000:])
        yield partial(_with_context, module, model)
    finally:
        module.llama_model_free(model)


def _with_context(module: Any, model: Any, **options: Any) -> Allocated:
    from ggext.runtime import llama

    params = module.llama_context_default_params()
    for name, value in options.items():
        setattr(params, name, value)
    with llama.listening(llama.Log(None)) as log:
        context = module.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError(_text(log)[-2000:])
    sizes = logged_sizes(module.llama_model_size(model), log)
    module.llama_free(context)
    return sizes


def _text(log: llama.Log) -> str:
    return "".join(text for _, text in log.lines)


def logged_sizes(weights: int, log: llama.Log) -> Allocated:
    """What llama.cpp logged of a context."""
    text = _text(log)
    cache = _logged(text, r"size = +([\d.]+) MiB \( *\d+ cells")
    cache += _logged(text, r"DSV4 \w+ state buffer size = +([\d.]+) MiB")
    compute, output = (
        _logged(text, rf"{word} buffer size = +([\d.]+) MiB")
        for word in ("compute", "output")
    )
    return Allocated(weights, cache, compute, output)


def _logged(log: str, pattern: str) -> int:
    """The sum of all sizes that the log has in a place, in bytes."""
    return math.ceil(sum(float(size) for size in re.findall(pattern, log)) * 2**20)
