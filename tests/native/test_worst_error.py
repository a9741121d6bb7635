"""The comparison of a kernel's output with the float64 answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rotations import (
    GOOD,
    HALF_UNIT,
    LAYOUTS,
    POSITIONS,
    ROWS,
    frequencies,
    random_rows,
    reference,
)

from ggext.native import rotate, worst_error

# The comparison


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 2, 5), (3, 0, 7), (2, 1, 9)], ids=str)
def test_worst_error_finds_the_place(layout, place) -> None:
    rows, positions, inv_freq = (
        random_rows(4, 3, 10),
        np.arange(4) * 1000,
        frequencies(8),
    )
    out = rotate(rows, positions, inv_freq, 1.0, layout)
    assert worst_error(out, rows, positions, inv_freq, 1.0, layout).error < HALF_UNIT
    expected = reference(rows, positions, inv_freq, 1.0, layout)
    out[place] += 0.5
    worst = worst_error(out, rows, positions, inv_freq, 1.0, layout)
    assert (worst.row, worst.head, worst.dimension) == place
    assert worst.error == pytest.approx(abs(out[place] - expected[place]), rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_not_a_number_is_infinitely_wrong(value, threads) -> None:
    rows, positions, inv_freq = (
        random_rows(512, 4, 128),
        np.arange(512),
        frequencies(128),
    )
    out = rotate(rows, positions, inv_freq, 1.0, "neox")
    out[300, 2, 70] = out[400, 1, 3] = value
    worst = worst_error(out, rows, positions, inv_freq, 1.0, "neox", threads=threads)
    assert worst == (np.inf, 300, 2, 70)
    assert (worst.row, worst.head, worst.dimension) == (300, 2, 70)


def test_equal_errors_name_the_first_place() -> None:
    rows = np.zeros((600, 2, 64), np.float32)
    out = rows.copy()
    out[[100, 500], 1, 40] = 1.0
    out[100, 1, 20] = -1.0
    for threads in (1, 2):
        worst = worst_error(
            out, rows, np.arange(600), frequencies(64), 1.0, "neox", threads=threads
        )
        assert worst == (1.0, 100, 1, 20)


def test_worst_error_checks_actual() -> None:
    def call(actual: Any) -> Callable[[], Any]:
        return lambda: worst_error(actual, **GOOD)

    with pytest.raises(TypeError, match="actual must be float32"):
        call(ROWS.astype(np.float64))()
    with pytest.raises(ValueError, match="actual and rows must have the same shape"):
        call(random_rows(4, 1, 16))()
    with pytest.raises(ValueError, match="actual has 3 rows"):
        call(ROWS[:3])()
    with pytest.raises(ValueError, match="nothing to compare"):
        worst_error(ROWS[:0], **{**GOOD, "rows": ROWS[:0], "positions": POSITIONS[:0]})
