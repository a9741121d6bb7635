"""Which layers of a model keep a state that does not grow with the text, as llama.cpp's loaders
decide it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECURRENT = "attention.recurrent_layers"
INTERVAL = "full_attention_interval"
KV_HEADS = "attention.head_count_kv"
#: The architectures whose layers are a gated delta net but for every fourth, where the file does
#: not say which, and those whose layers without keys and values are a short convolution.
DELTA_NETS = ("qwen3next", "qwen35", "qwen35moe")
CONVOLUTIONS = ("lfm2", "lfm2moe")


def recurrent_layers(arch: str, keys: Mapping[str, Any], layers: int) -> list[bool]:
    """For each of ``layers``, whether its memory is such a state.

    ``keys``: the architecture's own, without its prefix. Raises ValueError for a value that the
    loader does not take.
    """
    if arch in CONVOLUTIONS:
        counts = keys.get(KV_HEADS, 1)
        counts = counts if isinstance(counts, list) else [counts] * layers
        return [count == 0 for count in counts[:layers]]
    if arch not in DELTA_NETS:
        return [False] * layers
    given = keys.get(RECURRENT)
    if isinstance(given, bool):
        return [given] * layers
    if isinstance(given, list):
        if len(given) < layers or not all(isinstance(flag, bool) for flag in given):
            raise ValueError(
                f"{RECURRENT} is {given!r:.60}, not a flag for each of {layers} layers"
            )
        return given[:layers]
    interval = keys.get(INTERVAL, 4)
    if given is not None or isinstance(interval, bool) or not isinstance(interval, int):
        raise ValueError(
            f"{RECURRENT} is {given!r:.40} and {INTERVAL} {interval!r:.40}"
        )
    if interval < 1:
        raise ValueError(f"{INTERVAL} is {interval}; it must be at least 1")
    return [(i + 1) % interval != 0 for i in range(layers)]
