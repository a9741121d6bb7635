"""The compiled extension's Python face: rotary position embedding of query and key rows, and
conversion of values.

The rotation runs on the CPU, and on a GPU where ``device`` asks for it and :func:`available` says
yes: the same bits on CUDA; on Metal, which has no float64, float32 all through (4e-7 of the pair's
length at any position).

Angles are float64 and reduced exactly, and each result is rounded to the type of the rows once: for
float32 the error is half a unit in the last place (some 3e-8 of the pair's length) at any angle up
to 2**53 radians.

Conventions in all functions that rotate, and what they raise:

- ``rows``, ``actual`` and ``out``: ``(n_positions, n_heads, head_dim)``, C-contiguous, of float32,
  of float16, or of uint16 with ``dtype="bfloat16"``: numpy has no such type, so its bits are passed
  (``tensor.view(torch.uint16).numpy()``). What comes back is of the same type;
- ``positions``: whole tokens, int32 or int64 ``(n_positions,)``; negative ones shift back.
  ``offset`` is added to each; what results is at most 2**31 in size;
- ``inv_freq``: radians per token, ``(n_pairs,)``, one for each rotated pair; an array of float64,
  or a plain sequence. Dimensions of a head from ``2 * n_pairs`` on are not rotated;
- ``attention_factor``: the gain on both cos and sin, finite and above 0;
- ``layout``: which two dimensions make a pair, ``norm`` (2i, 2i+1) or ``neox`` (i, i + n_pairs);
- ``out``: where the result goes instead of a new array; it may be ``rows`` itself;
- ``threads``: an upper limit, 0 for all cores that this process may use; results never depend on
  it;
- ``device``: ``cpu``, or ``cuda`` or ``metal`` for the current device of that kind; the rows go
  there and come back; ``GgextError`` where there is none, or where it refuses;
- ``TypeError`` for a wrong type of object or of items, ``ValueError`` for a wrong shape, order in
  memory, or value. Arrays are never converted or copied behind the caller's back.

The interpreter lock is released during the work.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggext import _native
from ggext.errors import GgextError

if TYPE_CHECKING:
    from types import ModuleType

Layout = Literal["norm", "neox"]
Device = Literal["cpu", "cuda", "metal"]
Dtype = Literal["float32", "float16", "bfloat16"]
Rows = TypeVar("Rows", NDArray[np.float32], NDArray[np.float16], NDArray[np.uint16])
Positions = NDArray[np.integer[Any]]

DEVICES: tuple[Device, ...] = ("cpu", "cuda", "metal")
#: GPU → what it is called, and what its backend is built with.
_GPUS = {"cuda": ("CUDA", "nvcc"), "metal": ("Metal", "macOS's frameworks")}
_VECTORS = ("the compiler's own", "AVX2", "AVX-512")
_TYPE_NUMBERS = {"float32": 0, "float16": 1, "bfloat16": 2}
#: What ``convert`` can make, in the extension's order → the type of the array's items.
_CONVERTED = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "q8_0": np.uint8,
}


class Rotation(NamedTuple):
    """How rows are rotated, for :func:`rotate_between`; the module says what the values may be."""

    positions: Positions
    inv_freq: NDArray[np.float64] | Sequence[float]
    attention_factor: float = 1.0
    offset: int = 0


class WorstError(NamedTuple):
    """The largest absolute difference and the first place where it occurs.

    ``error`` is infinite where a value is not a finite number, so that no comparison overlooks it.
    """

    error: float
    row: int
    head: int
    dimension: int


def rotate(
    rows: Rows,
    positions: Positions,
    inv_freq: NDArray[np.float64] | Sequence[float],
    attention_factor: float,
    layout: Layout,
    *,
    inverse: bool = False,
    offset: int = 0,
    dtype: Dtype | None = None,
    out: Rows | None = None,
    threads: int = 0,
    device: Device = "cpu",
) -> Rows:
    """The rows turned by their positions; with ``inverse``, what undoes that.

    A pair (x, y) at position p becomes m (x cos a - y sin a, x sin a + y cos a), where a is
    (p + offset) · inv_freq and m the attention_factor; the inverse turns by -a and divides by m.

    >>> import numpy as np
    >>> quarter_turn = np.array([np.pi / 2])
    >>> rows = np.array([[[1.0, 2.0]]], dtype=np.float32)
    >>> rotate(rows, np.array([1]), quarter_turn, 1.0, "norm").tolist()
    [[[-2.0, 1.0]]]
    """
    table = _table(Rotation(positions, inv_freq, attention_factor, offset))
    tables = (None, table) if inverse else (table, None)
    return _rotate(rows, tables, layout, dtype, out, threads, device)


def rotate_between(
    rows: Rows,
    before: Rotation,
    after: Rotation,
    layout: Layout,
    *,
    dtype: Dtype | None = None,
    out: Rows | None = None,
    threads: int = 0,
    device: Device = "cpu",
) -> Rows:
    """Rows that were rotated as ``before`` says, as if they had been rotated as ``after`` says.

    For cached keys whose table or positions change: one pass and one rounding, by the difference of
    the two angles, formed in float64, and the quotient of the two gains. Both have a position for
    each row and the same number of frequencies.

    >>> import numpy as np
    >>> rows = np.array([[[0.0, 1.0]]], dtype=np.float32)  # (1, 0), turned at position 1
    >>> before, after = Rotation(np.array([1]), [np.pi / 2]), Rotation(np.array([4]), [np.pi / 4])
    >>> rotate_between(rows, before, after, "norm").round(6).tolist()
    [[[-1.0, 0.0]]]
    """
    return _rotate(
        rows, (_table(after), _table(before)), layout, dtype, out, threads, device
    )


def cos_sin(
    positions: Positions,
    inv_freq: NDArray[np.float64] | Sequence[float],
    attention_factor: float,
    *,
    offset: int = 0,
    dtype: Literal["float32", "float64"] = "float32",
    threads: int = 0,
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """The gain times cos, and times sin, of every angle: two arrays ``(n_positions, n_pairs)``."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', not {dtype!r}")
    table = _table(Rotation(positions, inv_freq, attention_factor, offset))
    shape = (_contiguous(positions, "positions").size, table[2].size)
    cos = np.empty(shape, dtype)
    sin = np.empty(shape, dtype)
    _native.cos_sin(table, _threads(threads), cos, sin)
    return cos, sin


def worst_error(
    actual: Rows,
    rows: Rows,
    positions: Positions,
    inv_freq: NDArray[np.float64] | Sequence[float],
    attention_factor: float,
    layout: Layout,
    *,
    inverse: bool = False,
    offset: int = 0,
    dtype: Dtype | None = None,
    threads: int = 0,
) -> WorstError:
    """How far ``actual``, some kernel's answer, is from the rows turned in float64, not rounded.

    There must be at least one row. The dimensions that are not rotated are compared with ``rows``.
    """
    table = _table(Rotation(positions, inv_freq, attention_factor, offset))
    to, before = (None, table) if inverse else (table, None)
    return WorstError(
        *_native.worst_error(
            actual,
            rows,
            _type_number(rows, dtype),
            to,
            before,
            _neox(layout),
            _threads(threads),
        )
    )


class ValueLostError(ValueError):
    """The type asked for cannot hold ``value``, which stands at ``place``."""

    def __init__(self, value: float, place: int, to: str) -> None:
        super().__init__(f"{to} cannot hold the value {value:g} at {place}")
        self.value = value
        self.place = place


def convert(
    values: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16],
    to: Literal["float32", "float16", "bfloat16", "q8_0"],
    *,
    dtype: Dtype | None = None,
) -> NDArray[Any]:
    """The values (one-dimensional, types as above) in another type: each rounded once, ties to
    even.

    bfloat16 comes as uint16. ``q8_0``: the bytes of ggml's blocks, 34 for each 32 values, as its
    reference quantizer makes them. Raises ``ValueLostError`` for a finite value that would become
    infinite, and in q8_0 for NaN, infinity and a block whose scale float16 cannot hold.

    >>> import numpy as np
    >>> convert(np.array([1.0, -0.5], dtype=np.float32), "bfloat16").tolist()
    [16256, 48896]
    """
    if to not in _CONVERTED:
        raise ValueError(f"to must be one of {', '.join(_CONVERTED)}, not {to!r}")
    number = _type_number(values, dtype, "values")
    size = values.size // 32 * 34 if to == "q8_0" else values.size
    out = np.empty(size, _CONVERTED[to])
    place = _native.convert(values, number, out, list(_CONVERTED).index(to))
    if place >= 0:
        lost = values[place : place + 1]
        wide = lost.astype("<u4") << 16 if number == _TYPE_NUMBERS["bfloat16"] else lost
        value = wide.view("<f4")[0] if wide.dtype == np.uint32 else wide[0]
        raise ValueLostError(
            float(value),
            place,
            to,
        )
    return out


def vectors() -> str:
    """The vector instructions that rotations on the CPU use here; no result depends on them."""
    level = _native.use_vectors(len(_VECTORS))
    _native.use_vectors(level)
    return _VECTORS[level]


def available(device: Device) -> bool:
    """Whether it works here: for a GPU, the backend is built, and a driver and a device are
    there."""
    try:
        _module(device)
    except GgextError:
        return False
    return True


def cuda_seconds(
    positions: Positions,
    inv_freq: NDArray[np.float64] | Sequence[float],
    layout: Layout,
    heads: tuple[int, int],
    dtype: Dtype,
    *,
    repeats: int = 20,
) -> tuple[float, float]:
    """The fastest rotation of such rows in device memory, and the fastest copy of the same bytes,
    in seconds.

    ``heads``: their number and their dimensions. The gain is 1. For benchmarks.
    """
    table = _table(Rotation(positions, inv_freq))
    try:
        seconds: tuple[float, float] = _module("cuda").measure(
            _TYPE_NUMBERS[dtype], table, _neox(layout), *heads, repeats
        )
    except RuntimeError as error:
        raise GgextError(f"CUDA refused the measurement: {error}") from error
    return seconds


_Table = tuple[Positions, int, NDArray[np.float64], float]


def _rotate(
    rows: Rows,
    tables: tuple[_Table | None, _Table | None],
    layout: str,
    dtype: str | None,
    out: Rows | None,
    threads: int,
    device: str,
) -> Rows:
    """Tables: to which, from which; None is no rotation."""
    if device not in DEVICES:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'metal', not {device!r}")
    number = _type_number(rows, dtype)
    if out is None:
        out = np.empty_like(_contiguous(rows, "rows"), subok=False)
    module = _module(device)
    try:
        module.rotate(rows, number, *tables, _neox(layout), _threads(threads), out)
    except RuntimeError as error:  # only the device's
        raise GgextError(
            f"{_GPUS[device][0]} refused the rotation of rows {rows.shape}: {error}"
        ) from error
    return out


def _module(device: str) -> ModuleType:
    """A backend, loaded on first use; GgextError where the build lacks it or no device can be
    used."""
    if device == "cpu":
        return _native
    name, needed = _GPUS[device]
    try:
        module = importlib.import_module(f"ggext._{device}")
    except ImportError as error:
        raise GgextError(
            f"{name} was asked for, but this build of ggext has no {name} backend ({error}): "
            f"build it where {needed} can be found, or use the CPU"
        ) from error
    n_devices, reason = module.devices()
    if n_devices == 0:
        raise GgextError(
            f"{name} was asked for, but no {name} device can be used ({reason}): use the CPU"
        )
    return module


def _table(rotation: Rotation) -> _Table:
    """A sequence of frequencies (a table's tuple) becomes an array; an array passes as it is,
    checked in C."""
    positions, inv_freq, attention_factor, offset = rotation
    if not -(2**62) <= offset <= 2**62:
        raise ValueError(f"offset must be at most 2**31 in size, not {offset}")
    if not isinstance(inv_freq, np.ndarray):
        inv_freq = np.array(inv_freq, dtype=np.float64)
    return positions, offset, inv_freq, attention_factor


def _type_number(rows: NDArray[Any], dtype: str | None, name: str = "rows") -> int:
    """The extension's number of the rows' type; whether the rows are of it is checked there."""
    if dtype is not None:
        if dtype not in _TYPE_NUMBERS:
            raise ValueError(
                f"dtype must be one of {', '.join(_TYPE_NUMBERS)}, not {dtype!r}"
            )
        return _TYPE_NUMBERS[dtype]
    if not isinstance(rows, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, not {type(rows).__name__}")
    if rows.dtype not in (np.float32, np.float16):
        raise TypeError(
            f"{name} must be float32, float16, or uint16 with dtype='bfloat16', in native byte "
            f"order, not {rows.dtype}"
        )
    return _TYPE_NUMBERS[rows.dtype.name]


def _contiguous(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Refused before memory of the same shape is allocated: a broadcast view can claim any size."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, not {type(array).__name__}")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be C-contiguous: pass numpy.ascontiguousarray({name})"
        )
    return array


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
