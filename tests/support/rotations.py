"""Rows, tables and the float64 answer for tests of the extension."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HALF_UNIT = 6.1e-8  # half a unit in the last place of a float32 in [1, 2), and some
LAYOUTS = ("norm", "neox")


def frequencies(n_rot: int, base: float = 10_000.0) -> NDArray[np.float64]:
    return base ** (-np.arange(0, n_rot, 2) / n_rot)


def random_rows(n: int, heads: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    return (
        np.random.default_rng(seed).uniform(-1, 1, (n, heads, dim)).astype(np.float32)
    )


def reference(rows, positions, inv_freq, gain, layout, inverse=False):
    """A rotation is a complex product: written down without looking at the C code."""
    n_rot = 2 * len(inv_freq)
    out = rows.astype(np.float64)
    first, second = (
        (slice(0, n_rot, 2), slice(1, n_rot, 2))
        if layout == "norm"
        else (slice(0, n_rot // 2), slice(n_rot // 2, n_rot))
    )
    turn = gain * np.exp(1j * positions.astype(np.float64)[:, None] * inv_freq)
    if inverse:
        turn = 1 / turn
    turned = (out[..., first] + 1j * out[..., second]) * turn[:, None, :]
    out[..., first], out[..., second] = turned.real, turned.imag
    return out


# Types of 16 bits, offsets, tables


def bfloat16_bits(values: NDArray[Any]) -> NDArray[np.uint16]:
    """The nearest bfloat16, ties to even, of finite float64 values: found in the sorted list of
    all."""
    magnitudes = (
        (np.arange(0x7F81, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    )
    magnitudes[-1] = 2.0**128  # what infinity stands for in rounding
    size = np.abs(values).astype(np.float64)
    above = np.minimum(np.searchsorted(magnitudes, size), 0x7F80)
    below = np.maximum(above - 1, 0)
    down, up = size - magnitudes[below], magnitudes[above] - size
    bits = np.where(
        (up < down) | ((up == down) & (above % 2 == 0)), above, below
    ).astype(np.uint16)
    return bits | (np.signbit(values).astype(np.uint16) << 15)


def bfloat16_values(bits: NDArray[np.uint16]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # signalling NaN
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def as_type(dtype: str, values: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return bfloat16_bits(values) if dtype == "bfloat16" else values.astype(dtype)


def values_of(dtype: str, rows: NDArray[Any]) -> NDArray[np.float64]:
    return bfloat16_values(rows) if dtype == "bfloat16" else rows.astype(np.float64)


DTYPES = ("float32", "float16", "bfloat16")


# Hostile callers

GOOD: dict[str, Any] = {
    "rows": random_rows(4, 2, 8),
    "positions": np.arange(4),
    "inv_freq": frequencies(8),
    "attention_factor": 1.0,
    "layout": "norm",
    "threads": 1,
}
ROWS, POSITIONS, INV_FREQ = GOOD["rows"], GOOD["positions"], GOOD["inv_freq"]
