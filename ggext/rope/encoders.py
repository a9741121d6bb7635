"""The two forms in which a RoPE table is written down: metadata keys, and frequency factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ggext.rope import methods
from ggext.rope.keys import BETA_FAST, BETA_SLOW, ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from ggext.rope.scaling import RopeGeometry, RopeScaling, RopeTable

#: A file's keys without the architecture's prefix. An int is written as UINT32, a float as FLOAT32.
Keys = dict[str, str | int | float | tuple[int, ...]]

#: A pair divided by this does not turn: 1e-30 radians a token (the value that llama.cpp's converter
#: writes).
_STANDS_STILL = 1e30

_Written = tuple[Keys, dict[str, tuple[float, ...]]]


def _as_keys(
    scaling: RopeScaling, geometry: RopeGeometry, requested: RopeTable
) -> _Written:
    """The standard keys. ``rope.scaling.factor`` divides positions in every type but none, so it is
    left out where the method works otherwise."""
    method = scaling.method
    factor = float(scaling.factor or 1.0)
    keys: Keys = {
        "rope.freq_base": float(geometry.base),
        "rope.scaling.type": "none",
    }
    if method != "none":
        keys["rope.scaling.original_context_length"] = methods.original_context(
            scaling, geometry
        )
    if method == "ntk":
        keys["rope.freq_base"] = methods.ntk_base(factor, geometry)
    if method in ("linear", "yarn"):
        keys |= {"rope.scaling.type": method, "rope.scaling.factor": factor}
    gain = requested.attention_factor
    if method == "yarn":
        gain /= methods.yarn_gain(
            factor
        )  # llama.cpp's kernel multiplies by it on its own
    if method in ("linear", "yarn") or gain != 1.0:
        keys["rope.scaling.attn_factor"] = gain
    return keys, still_factors(geometry)


def still_factors(geometry: RopeGeometry) -> dict[str, tuple[float, ...]]:
    """The tensor that says nothing but which pairs do not turn, where the model has such."""
    if geometry.turning is None:
        return {}
    pairs = geometry.n_rot // 2
    return {
        ROPE_FREQS: tuple(
            1.0 if i < geometry.turning else _STANDS_STILL for i in range(pairs)
        )
    }


def beta_keys(scaling: RopeScaling) -> Keys:
    given = {BETA_FAST: scaling.beta_fast, BETA_SLOW: scaling.beta_slow}
    return {key: float(value) for key, value in given.items() if value is not None}


def _as_tensor(
    scaling: RopeScaling, geometry: RopeGeometry, requested: RopeTable
) -> _Written:
    """``rope_freqs.weight`` = θᵢ/ωᵢ, by which llama.cpp divides each pair's angle. No scaling type
    and no factor, as llama.cpp's own files of Llama 3 have it: an absent type with a factor means
    linear. LongRoPE has two such tensors and its own type; a factor would divide the angles once
    more."""
    keys: Keys = {"rope.freq_base": float(geometry.base)}
    if scaling.method != "none":
        keys["rope.scaling.original_context_length"] = methods.original_context(
            scaling, geometry
        )
    if requested.attention_factor != 1.0:
        keys["rope.scaling.attn_factor"] = requested.attention_factor
    if scaling.method != "longrope":
        return keys, {ROPE_FREQS: frequency_factors(requested, geometry)}
    keys["rope.scaling.type"] = "longrope"
    short = methods.make_table(scaling, geometry, 1)
    long = methods.make_table(scaling, geometry, 1 << 62)
    return keys, {
        ROPE_LONG: frequency_factors(long, geometry),
        ROPE_SHORT: frequency_factors(short, geometry),
    }


def frequency_factors(table: RopeTable, geometry: RopeGeometry) -> tuple[float, ...]:
    """θᵢ/ωᵢ, by which llama.cpp's operation divides each pair's unscaled angle."""
    unscaled = methods.theta(geometry)
    return tuple(
        t / w if w else _STANDS_STILL
        for t, w in zip(unscaled, table.inv_freq, strict=True)
    )


ENCODERS: dict[
    Literal["keys", "tensor"],
    Callable[[RopeScaling, RopeGeometry, RopeTable], _Written],
] = {
    "keys": _as_keys,
    "tensor": _as_tensor,
}
