"""What a context shift of llama.cpp does to a file, and whether folding the gain helps.

A program that rolls its context moves keys that are rotated already. llama.cpp does that with the
same ROPE operation: the gain of the kernel is applied again, in every layer (``build_rope_shift``
in ``llama-kv-cache.cpp``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ggext.rope.capabilities import capability_of
from ggext.rope.compare import EXACT_GAIN
from ggext.rope.decode import decode, geometry_of, rolls
from ggext.rope.keys import query_scale
from ggext.rope.scaling import RopeGeometry


def folding_obstacle(arch: str, geometry: RopeGeometry) -> str:
    """Why a gain cannot be folded into the queries of ``arch``, or is of no use there: a sentence
    without its end, empty where it can be."""
    capability = capability_of(arch, sectioned=geometry.sections is not None)
    if capability.is_never_shifted:
        return f"llama.cpp never shifts a context of {arch}, so that nothing rolls it"
    if capability.scores == "scaled":
        return (
            f"llama.cpp's {arch} rotates a part of the queries that has no rows of its own to fold "
            "a gain into"
        )
    if capability.norm_behind:
        return (
            f"llama.cpp's {arch} norms queries and keys after their rotation, which takes the gain "
            "away"
        )
    if geometry.sliding_base is not None:
        return (
            f"llama.cpp's {arch} would give its sliding-window layers the gain that cancels "
            "YaRN's in the other layers"
        )
    return ""


def shift_damage(
    keys: Mapping[str, Any], tensors: Mapping[str, Sequence[float]], arch: str
) -> str:
    """What a context shift does to the cached keys of a file: a sentence without its end, empty for
    nothing. ``keys``: the architecture's without their prefix; ``tensors``: as ``decode``."""
    sectioned = geometry_of(keys, arch).sections is not None
    if capability_of(arch, sectioned=sectioned).is_never_shifted:
        return ""
    wrong = turned_wrongly(arch)
    if wrong:
        return wrong
    gain = decode(keys, tensors, arch).attention_factor / math.sqrt(query_scale(keys))
    if abs(gain - 1.0) > EXACT_GAIN:
        return f"each shift multiplies the cached keys by the attention factor {gain:.4g} again"
    if not rolls(keys, arch):
        return (
            "each shift multiplies the cached keys of the sliding-window layers by "
            "rope.scaling.attn_factor"
        )
    return ""


def turned_wrongly(arch: str) -> str:
    """Why a shift leaves the cached keys of ``arch`` wrong whatever the scaling: a sentence without
    its end, empty where it does not."""
    capability = capability_of(arch)
    if capability.shifts_keys:
        return ""
    if capability.norm_behind:
        return (
            f"llama.cpp's {arch} norms its keys after their rotation, and a shift turns them "
            "without that norm"
        )
    return f"a shift also turns the cached keys of {arch}'s layers that have no RoPE"
