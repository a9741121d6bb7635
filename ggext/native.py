"""The compiled extension's Python face: rotary position embedding of float32 rows on the CPU.

Angles are float64 and reduced exactly, and each result is rounded to float32 once: the error is
half a unit in the last place (some 3e-8 of the pair's length) at any angle up to 2**53 radians.

Conventions in all functions, and what they raise:

- ``rows`` and ``actual``: float32 ``(n_positions, n_heads, head_dim)``, C-contiguous;
- ``positions``: whole tokens, int32 or int64 ``(n_positions,)``; negative ones shift back;
- ``inv_freq``: radians per token, ``(n_pairs,)``, one for each rotated pair; an array of float64,
  or a plain sequence. Dimensions of a head from ``2 * n_pairs`` on are not rotated;
- ``attention_factor``: the gain on both cos and sin, finite and above 0;
- ``layout``: which two dimensions make a pair, ``norm`` (2i, 2i+1) or ``neox`` (i, i + n_pairs);
- ``threads``: an upper limit, 0 for all cores that this process may use; results never depend on
  it;
- ``TypeError`` for a wrong type of object or of items, ``ValueError`` for a wrong shape, order in
  memory, or value. Arrays are never converted or copied behind the caller's back.

The interpreter lock is released during the work.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggext import _native

Layout = Literal["norm", "neox"]


class WorstError(NamedTuple):
    """The largest absolute difference and the first place where it occurs.

    ``error`` is infinite where a value is not a finite number, so that no comparison overlooks it.
    """

    error: float
    row: int
    head: int
    dimension: int


def rotate(
    rows: NDArray[np.float32],
    positions: NDArray[np.integer[Any]],
    inv_freq: NDArray[np.float64] | Sequence[float],
    attention_factor: float,
    layout: Layout,
    *,
    inverse: bool = False,
    threads: int = 0,
) -> NDArray[np.float32]:
    """The rows turned by their positions, a new array; with ``inverse``, what undoes that.

    A pair (x, y) at position p becomes m (x cos a - y sin a, x sin a + y cos a), where a is
    p · inv_freq and m the attention_factor; the inverse turns by -a and divides by m.

    >>> import numpy as np
    >>> quarter_turn = np.array([np.pi / 2])
    >>> rows = np.array([[[1.0, 2.0]]], dtype=np.float32)
    >>> rotate(rows, np.array([1]), quarter_turn, 1.0, "norm").tolist()
    [[[-2.0, 1.0]]]
    """
    frequencies = _frequencies(inv_freq)
    out = np.empty_like(_contiguous(rows, "rows"), dtype=np.float32, subok=False)
    _native.rotate(
        rows,
        positions,
        frequencies,
        attention_factor,
        _neox(layout),
        inverse,
        _threads(threads),
        out,
    )
    return out


def cos_sin(
    positions: NDArray[np.integer[Any]],
    inv_freq: NDArray[np.float64] | Sequence[float],
    attention_factor: float,
    *,
    threads: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The gain times cos, and times sin, of every angle: two arrays ``(n_positions, n_pairs)``."""
    frequencies = _frequencies(inv_freq)
    shape = (_contiguous(positions, "positions").size, frequencies.size)
    cos, sin = np.empty(shape, np.float32), np.empty(shape, np.float32)
    _native.cos_sin(positions, frequencies, attention_factor, _threads(threads), cos, sin)
    return cos, sin


def worst_error(
    actual: NDArray[np.float32],
    rows: NDArray[np.float32],
    positions: NDArray[np.integer[Any]],
    inv_freq: NDArray[np.float64] | Sequence[float],
    attention_factor: float,
    layout: Layout,
    *,
    inverse: bool = False,
    threads: int = 0,
) -> WorstError:
    """How far ``actual``, some kernel's answer, is from the rows turned in float64, not rounded.

    There must be at least one row. The dimensions that are not rotated are compared with ``rows``.
    """
    return WorstError(
        *_native.worst_error(
            actual,
            rows,
            positions,
            _frequencies(inv_freq),
            attention_factor,
            _neox(layout),
            inverse,
            _threads(threads),
        )
    )


def _contiguous(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Refused before memory of the same shape is allocated: a broadcast view can claim any size."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, not {type(array).__name__}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous: pass numpy.ascontiguousarray({name})")
    return array


def _frequencies(inv_freq: NDArray[np.float64] | Sequence[float]) -> NDArray[np.float64]:
    """A sequence (a table's tuple) becomes an array; an array passes as it is, checked in C."""
    if isinstance(inv_freq, np.ndarray):
        return inv_freq
    return np.array(inv_freq, dtype=np.float64)


def _neox(layout: str) -> bool:
    if layout not in ("norm", "neox"):
        raise ValueError(f"layout must be 'norm' or 'neox', not {layout!r}")
    return layout == "neox"


def _threads(threads: int) -> int:
    """0 becomes the number of cores that this process may use; C has its own, lower, limit."""
    if threads != 0:
        return min(threads, 4096)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
