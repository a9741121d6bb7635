"""Layers that attend to compressed tokens next to a window (``models/deepseek4.cpp`` and
``llama-kv-cache-dsv4.cpp`` of llama.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The architectures that have them.
COMPRESSED = frozenset({"deepseek4"})
RATIOS = "attention.compress_ratios"
#: RoPE's base in the layers that have compressed tokens; the others rotate by ``rope.freq_base``.
BASE = "attention.compress_rope_freq_base"
#: Tokens that become one, in layers of which an indexer chooses some, and in those that take all;
#: 0: the layer has none.
CHOSEN, ALL = 4, 128
#: Tensor → its shape, in the sizes of ``sizes.Sizes``.
SHAPES: Mapping[str, tuple[str, ...]] = {
    "attn_q_a": ("embd", "query_rank"),
    "attn_q_a_norm": ("query_rank",),
    "attn_q_b": ("query_rank", "heads*key"),
    "attn_kv": ("embd", "key"),
    "attn_kv_a_norm": ("key",),
    "attn_output_a": ("grouped*key", "out_rank*out_groups"),
    "attn_output_b": ("out_rank*out_groups", "embd"),
    **dict.fromkeys(("hc_attn_fn", "hc_ffn_fn"), ("streams*embd", "mixed")),
    **dict.fromkeys(("hc_attn_base", "hc_ffn_base"), ("mixed",)),
    **dict.fromkeys(("hc_attn_scale", "hc_ffn_scale"), ("three",)),
    "output_hc_fn": ("streams*embd", "streams"),
    "output_hc_base": ("streams",),
    "output_hc_scale": ("one",),
    **dict.fromkeys(
        ("attn_compressor_kv", "attn_compressor_gate"), ("embd", "key+key")
    ),
    "attn_compressor_ape": ("key+key", "chosen"),
    "attn_compressor_norm": ("key",),
    "indexer.proj": ("embd", "index_heads"),
    "indexer.attn_q_b": ("query_rank", "index_heads*index"),
    **dict.fromkeys(
        ("indexer_compressor_kv", "indexer_compressor_gate"),
        ("embd", "index+index"),
    ),
    "indexer_compressor_ape": ("index+index", "chosen"),
    "indexer_compressor_norm": ("index",),
    "ffn_gate_tid2eid": ("used", "vocab"),
}
#: Shapes where all compressed tokens are attended to, which do not overlap.
ALSO: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("attn_compressor_kv", "attn_compressor_gate"), ("embd", "key")),
    "attn_compressor_ape": ("key", "all_tokens"),
    "attn_output_a": ("grouped*key", "out_rank", "out_groups"),
}


def compress_ratios(keys: Mapping[str, Any], layers: int) -> list[int]:
    """The ratio of each of ``layers``. ``keys``: the architecture's own, without its prefix.

    Raises ValueError for what llama.cpp refuses, and for a model that lacks one of the two kinds:
    the cache of a kind without layers has rows of no bytes, and llama.cpp divides by that."""
    given: Any = keys.get(RATIOS)
    whole = isinstance(given, list) and all(type(ratio) is int for ratio in given)
    if not whole or len(given) < layers:
        raise ValueError(
            f"{RATIOS} is {given!r:.60}, not a number for each of {layers} layers"
        )
    ratios = list(given[:layers])
    if not set(ratios) <= {0, CHOSEN, ALL}:
        raise ValueError(f"{RATIOS} is {given!r:.60}; each is 0, {CHOSEN} or {ALL}")
    for ratio in (CHOSEN, ALL):
        if ratio not in ratios:
            raise ValueError(
                f"no layer has a ratio of {ratio} in {RATIOS}, and llama.cpp divides by zero "
                "without one"
            )
    return ratios
