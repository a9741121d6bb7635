"""Arguments of the extension from hostile callers: each raises."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rotations import GOOD, INV_FREQ, POSITIONS, ROWS, frequencies, random_rows

import ggext.native
from ggext import _native
from ggext.native import rotate


def unaligned(array: NDArray[Any]) -> NDArray[Any]:
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    raw[:] = np.frombuffer(array.tobytes(), np.uint8)
    return raw.view(array.dtype).reshape(array.shape)


HOSTILE: list[tuple[str, Any, type[Exception], str]] = [
    ("rows", ROWS.astype(np.float64), TypeError, "rows must be float32"),
    (
        "rows",
        ROWS.astype(np.uint16),
        TypeError,
        "rows must be float32, float16, or uint16 with dtype='bfloat16'",
    ),
    ("rows", ROWS.astype(">f4"), TypeError, "in native byte order, not >f4"),
    ("rows", ROWS.astype(">f2"), TypeError, "in native byte order, not >f2"),
    ("rows", ROWS.view(np.int32), TypeError, "rows must be float32"),
    ("rows", ROWS.view(np.dtype([("a", "f4")])), TypeError, "rows must be float32"),
    ("rows", ROWS.astype(object), TypeError, "rows must be float32"),
    ("rows", ROWS.tolist(), TypeError, "rows must be a"),
    ("rows", None, TypeError, "rows must be a"),
    ("rows", ROWS[0], ValueError, "rows must have 3 dimensions"),
    ("rows", ROWS[None], ValueError, "rows must have 3 dimensions"),
    ("rows", ROWS[..., ::2], ValueError, "rows must be C-contiguous"),
    ("rows", np.asfortranarray(ROWS), ValueError, "rows must be C-contiguous"),
    ("rows", ROWS[::-1], ValueError, "rows must be C-contiguous"),
    ("rows", unaligned(ROWS), ValueError, "rows must be aligned"),
    ("rows", ROWS[:3].copy(), ValueError, "rows has 3 rows but there are 4 positions"),
    ("rows", ROWS[:, :0].copy(), ValueError, "0 heads"),
    ("rows", random_rows(4, 2, 7), ValueError, "too small for 4 rotated pairs"),
    (
        "rows",
        np.broadcast_to(np.float32(0), (1 << 40, 1, 8)),
        ValueError,
        "C-contiguous",
    ),
    (
        "positions",
        POSITIONS.astype(np.float64),
        TypeError,
        "positions must be int32 or int64",
    ),
    (
        "positions",
        POSITIONS.astype(np.uint32),
        TypeError,
        "positions must be int32 or int64",
    ),
    (
        "positions",
        POSITIONS.astype(np.int16),
        TypeError,
        "positions must be int32 or int64",
    ),
    (
        "positions",
        POSITIONS.astype(">i8"),
        TypeError,
        "positions must be int32 or int64",
    ),
    ("positions", [0, 1, 2, 3], TypeError, "positions must be a"),
    ("positions", POSITIONS[None], ValueError, "positions must have 1 dimension"),
    ("positions", np.arange(8)[::2], ValueError, "positions must be C-contiguous"),
    ("positions", np.arange(5), ValueError, "there are 5 positions"),
    (
        "positions",
        np.array([0, 1, 2, 2**31 + 1]),
        ValueError,
        r"positions\[3\] is too large: 2147483649 .* 2\*\*31",
    ),
    (
        "positions",
        np.array([0, 1, 2, 2**63 - 1]),
        ValueError,
        r"positions\[3\] is too large: 9223372036854775807 ",
    ),
    (
        "positions",
        np.array([0, -(2**63), 2, 3]),
        ValueError,
        r"positions\[1\] is too large: -9223372036854775808 ",
    ),
    (
        "offset",
        2**31 - 2,
        ValueError,
        r"positions\[3\] is too large: 3 with the offset 2147483646 ",
    ),
    (
        "offset",
        -(2**62),
        ValueError,
        r"positions\[0\] is too large: 0 with the offset -4611686018427387904 ",
    ),
    (
        "offset",
        2**70,
        ValueError,
        "offset must be at most .* not 1180591620717411303424",
    ),
    ("offset", 0.5, TypeError, "integer"),
    (
        "dtype",
        "float64",
        ValueError,
        "dtype must be one of float32, float16, bfloat16, not 'float64'",
    ),
    ("dtype", "bfloat16", TypeError, "rows must be uint16 .the bits of bfloat16."),
    ("dtype", "float16", TypeError, "rows must be float16"),
    ("inv_freq", INV_FREQ.astype(np.float32), TypeError, "inv_freq must be float64"),
    ("inv_freq", INV_FREQ[:0], ValueError, "inv_freq is empty"),
    ("inv_freq", INV_FREQ[None], ValueError, "inv_freq must have 1 dimension"),
    ("inv_freq", frequencies(16)[::2], ValueError, "inv_freq must be C-contiguous"),
    ("inv_freq", frequencies(10), ValueError, "too small for 5 rotated pairs"),
    (
        "inv_freq",
        [1.0, np.nan, 1.0],
        ValueError,
        r"inv_freq\[1\] is not a finite number but nan",
    ),
    (
        "inv_freq",
        [1.0, 1.0, np.inf],
        ValueError,
        r"inv_freq\[2\] is not a finite number but inf",
    ),
    ("inv_freq", [1e300], ValueError, r"positions\[1\] is too large"),
    ("inv_freq", 1.0, ValueError, "inv_freq must have 1 dimension"),
    ("attention_factor", 0.0, ValueError, "attention_factor must be .* not 0.0"),
    ("attention_factor", -1.0, ValueError, "attention_factor must be .* not -1.0"),
    ("attention_factor", np.nan, ValueError, "attention_factor must be .* not nan"),
    ("attention_factor", np.inf, ValueError, "attention_factor must be .* not inf"),
    ("attention_factor", "1", TypeError, "must be real number"),
    ("layout", "neoX", ValueError, "layout must be 'norm' or 'neox'"),
    ("layout", 1, ValueError, "layout must be"),
    (
        "device",
        "vulkan",
        ValueError,
        "device must be 'cpu', 'cuda' or 'metal', not 'vulkan'",
    ),
    ("threads", -1, ValueError, "threads must be"),
    ("threads", 1.5, TypeError, "integer"),
]


def takes(entry: str, row: tuple[str, Any, type[Exception], str]) -> bool:
    """cos_sin has no rows: what concerns them, or a fit to them, is nothing to it."""
    about_rows = (
        row[0] in ("rows", "layout", "dtype")
        or "too small" in row[3]
        or "there are" in row[3]
    )
    return (entry != "cos_sin" or not about_rows) and (
        entry == "rotate" or row[0] != "device"
    )


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        pytest.param(entry, row, id=f"{entry}-{row[0]}-{row[3]}")
        for entry in ("rotate", "worst_error", "cos_sin")
        for row in HOSTILE
        if takes(entry, row)
    ],
)
def test_hostile_arguments_raise(
    entry: str, row: tuple[str, Any, type[Exception], str]
) -> None:
    name, value, error, message = row
    arguments = {**GOOD, name: value}
    if entry == "cos_sin":
        del arguments["rows"], arguments["layout"]
    elif entry == "worst_error":
        arguments["actual"] = ROWS
    with pytest.raises(error, match=message):
        getattr(ggext.native, entry)(**arguments)


def native_rotate(
    rows: Any = ROWS, positions: Any = POSITIONS, out: Any = None
) -> None:
    out = np.empty_like(ROWS) if out is None else out
    _native.rotate(rows, 0, (positions, 0, INV_FREQ, 1.0), None, False, 1, out)


def test_out_must_be_writable_and_fit() -> None:
    frozen = ROWS.copy()
    frozen.flags.writeable = False
    for out, message in [
        (frozen, "read-only|writable"),
        (memoryview(bytes(ROWS.nbytes)).cast("f", ROWS.shape), "writable"),
        (random_rows(4, 1, 16), "same shape"),
        (random_rows(5, 2, 8), "out has 5 rows"),
        (ROWS[..., ::2], "C-contiguous"),
    ]:
        with pytest.raises(ValueError, match=message):
            native_rotate(out=out)
    both = random_rows(5, 2, 8)
    with pytest.raises(ValueError, match="out overlaps rows"):
        native_rotate(both[:4], out=both[1:])
    with pytest.raises(ValueError, match="type must be 0, 1 or 2, not 3"):
        _native.rotate(
            ROWS, 3, (POSITIONS, 0, INV_FREQ, 1.0), None, False, 1, ROWS.copy()
        )
    with pytest.raises(TypeError, match="one table at least"):
        _native.rotate(ROWS, 0, None, None, False, 1, ROWS.copy())
    for table in (
        POSITIONS,
        (POSITIONS, 0, INV_FREQ),
        (POSITIONS, 0, INV_FREQ, 1.0, 2),
    ):
        with pytest.raises(TypeError, match="a table must be"):
            _native.rotate(ROWS, 0, table, None, False, 1, ROWS.copy())
    table = np.empty((4, 4), np.float32)
    with pytest.raises(
        ValueError, match=r"sin_out must have shape \(4, 4\), not \(4, 3\)"
    ):
        _native.cos_sin((POSITIONS, 0, INV_FREQ, 1.0), 1, table, table[:, :3].copy())
    with pytest.raises(TypeError, match="cos_out and sin_out must have the same type"):
        _native.cos_sin(
            (POSITIONS, 0, INV_FREQ, 1.0), 1, table, table.astype(np.float64)
        )


def test_any_exporter_of_buffers_is_served() -> None:
    out = np.empty_like(ROWS)
    native_rotate(memoryview(ROWS), (ctypes.c_int64 * 4)(0, 1, 2, 3), memoryview(out))
    assert np.array_equal(out, rotate(**GOOD))
    with pytest.raises(TypeError, match="rows must be float32"):
        native_rotate(ROWS.tobytes())
    with pytest.raises(TypeError, match="rows must be an array"):
        native_rotate(12)
    with pytest.raises(TypeError, match="positions must be int32 or int64"):
        native_rotate(positions=bytearray(32))
    with pytest.raises(TypeError):
        _native.rotate()


def test_buffers_are_given_back() -> None:
    """A bytearray cannot be resized while its buffer is held; afterwards it can."""
    raw = bytearray(ROWS.tobytes())
    view = memoryview(raw).cast("f", ROWS.shape)
    native_rotate(view)
    with pytest.raises(ValueError, match="5 positions"):
        native_rotate(view, np.arange(5))
    view.release()
    raw.append(0)
