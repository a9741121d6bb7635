"""Which layers of a model keep a state that does not grow with the text, as llama.cpp's loaders
decide it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECURRENT = "attention.recurrent_layers"
INTERVAL = "full_attention_interval"
KV_HEADS = "attention.head_count_kv"
FEED_FORWARD = "feed_forward_length"
#: The architectures whose layers are a gated delta net but for every fourth, where the file does
#: not say which, and those whose layers without keys and values are a short convolution.
DELTA_NETS = ("qwen3next", "qwen35", "qwen35moe")
CONVOLUTIONS = ("lfm2", "lfm2moe")
#: Those with layers of Mamba 2: such a one has neither keys nor a feed-forward part (Nemotron-H,
#: whose layers are one thing each), or no keys, or every layer is one that also attends.
NEMOTRONS = ("nemotron_h", "nemotron_h_moe")
MAMBAS = ("falcon-h1", "granitehybrid", *NEMOTRONS)


def recurrent_layers(arch: str, keys: Mapping[str, Any], layers: int) -> list[bool]:
    """For each of ``layers``, whether its memory is such a state.

    ``keys``: the architecture's own, without its prefix. Raises ValueError for a value that the
    loader does not take.
    """
    if arch == "falcon-h1":
        return [True] * layers
    if arch in NEMOTRONS:
        widths = _each(keys, FEED_FORWARD, layers, 0)
        counts = _each(keys, KV_HEADS, layers)
        return [not (kv or ff) for kv, ff in zip(counts, widths, strict=True)]
    if arch in (*CONVOLUTIONS, *MAMBAS):
        return [count == 0 for count in _each(keys, KV_HEADS, layers)]
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


def attending_layers(arch: str, keys: Mapping[str, Any], layers: int) -> list[bool]:
    """For each of ``layers``, whether it caches keys and values; raises as the above."""
    if arch == "falcon-h1":
        return [True] * layers
    if arch in NEMOTRONS:
        return [
            width == 0 and count != 0
            for width, count in zip(
                _each(keys, FEED_FORWARD, layers, 0),
                _each(keys, KV_HEADS, layers),
                strict=True,
            )
        ]
    return [not recurs for recurs in recurrent_layers(arch, keys, layers)]


def _each(
    keys: Mapping[str, Any], key: str, layers: int, default: int = 1
) -> list[Any]:
    """A value for each layer; the file has one for all, or a list."""
    value = keys.get(key, default)
    if not isinstance(value, list):
        return [value] * layers
    if len(value) < layers:
        raise ValueError(f"{key} has {len(value)} values for {layers} layers")
    return value[:layers]
