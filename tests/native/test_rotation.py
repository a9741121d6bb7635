"""The extension's rotation against numpy's float64 and against exact arithmetic."""

from __future__ import annotations

import doctest
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rotations import HALF_UNIT, LAYOUTS, frequencies, random_rows, reference

import ggext.native
from ggext.native import cos_sin, rotate, worst_error

# 2 pi to 70 digits; the true one differs by less than 1e-69.
TWO_PI = Fraction(
    "6.283185307179586476925286766559005768394338798750211641949889184615633"
)


def exact_cos_sin(position: int, inv_freq: float) -> tuple[float, float]:
    angle = float((position * Fraction(inv_freq)) % TWO_PI)
    return math.cos(angle), math.sin(angle)


# Parity


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("dim", "n_rot"), [(128, 128), (96, 32), (64, 64), (8, 8), (3, 2), (300, 260)]
)
def test_rotate_matches_float64(layout, inverse, dtype, dim, n_rot) -> None:
    positions = np.array(
        [0, 1, 17, 4095, 131_071, 1_000_000, 10_000_000, -5], dtype=dtype
    )
    rows, inv_freq = random_rows(len(positions), 3, dim), frequencies(n_rot)
    out = rotate(rows, positions, inv_freq, 1.25, layout, inverse=inverse)
    expected = reference(rows, positions, inv_freq, 1.25, layout, inverse)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=0, atol=2 * HALF_UNIT)
    assert np.array_equal(out[..., n_rot:], rows[..., n_rot:])


def test_literal_quarter_turn() -> None:
    rows = np.array([[[1, 2, 3, 4, 5]]], dtype=np.float32)
    position, quarter = np.array([1]), [math.pi / 2, 0.0]
    assert rotate(rows, position, quarter, 1.0, "norm").tolist() == [[[-2, 1, 3, 4, 5]]]
    assert rotate(rows, position, quarter, 1.0, "neox").tolist() == [[[-3, 2, 1, 4, 5]]]
    assert rotate(rows, position, quarter, 2.0, "norm").tolist() == [[[-4, 2, 6, 8, 5]]]
    assert rotate(rows, position, quarter, 2.0, "norm", inverse=True).tolist() == [
        [[1, -0.5, 1.5, 2, 5]]
    ]


@pytest.mark.parametrize("base", [10_000.0, 1e6, 150_000.0])
def test_cos_sin_is_half_a_unit_off_at_any_position(base: float) -> None:
    positions = np.array(
        [0, 1, 4096, 999_999, 1_048_576, 9_999_991, 10**9 + 7, 2**31, -(2**31)]
    )
    inv_freq = np.concatenate(
        [frequencies(16, base), [-1.0, math.pi / 2, 1e3 / 3, 2.0**22]]
    )  # up to an angle of 2^53
    cos, sin = cos_sin(positions, inv_freq, 1.0)
    for i, position in enumerate(positions.tolist()):
        for j, frequency in enumerate(inv_freq.tolist()):
            expected = exact_cos_sin(position, frequency)
            assert (cos[i, j], sin[i, j]) == pytest.approx(expected, rel=0, abs=3.1e-8)


def test_cos_sin_matches_float64_over_a_million_positions() -> None:
    positions = np.arange(0, 1_000_000, 97, dtype=np.int32)
    inv_freq = frequencies(128)
    cos, sin = cos_sin(positions, inv_freq, 1.1386)
    angles = positions[:, None] * inv_freq
    assert np.abs(cos - 1.1386 * np.cos(angles)).max() < 1e-7
    assert np.abs(sin - 1.1386 * np.sin(angles)).max() < 1e-7


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_change_no_bit(layout) -> None:
    rows, positions, inv_freq = (
        random_rows(511, 8, 128),
        np.arange(511),
        frequencies(128),
    )
    one = rotate(rows, positions, inv_freq, 1.5, layout, threads=1)
    for threads in (0, 2, 3, 7, 300, 2**40):
        assert np.array_equal(
            one, rotate(rows, positions, inv_freq, 1.5, layout, threads=threads)
        )
        assert worst_error(
            one, rows, positions, inv_freq, 1.5, layout, threads=threads
        ) == worst_error(one, rows, positions, inv_freq, 1.5, layout, threads=1)
    long_positions = np.arange(5000)
    for a, b in zip(
        cos_sin(long_positions, inv_freq, 1.0, threads=1),
        cos_sin(long_positions, inv_freq, 1.0, threads=5),
        strict=True,
    ):
        assert np.array_equal(a, b)


def test_in_place_is_the_same() -> None:
    rows, positions, inv_freq = random_rows(4, 2, 10), np.arange(4), frequencies(8)
    out = rotate(rows, positions, inv_freq, 1.5, "neox")
    assert rotate(rows, positions, inv_freq, 1.5, "neox", out=rows) is rows
    assert np.array_equal(rows, out)


def test_input_is_not_changed_and_no_rows_are_fine() -> None:
    rows, inv_freq = random_rows(4, 2, 8), frequencies(8)
    before = rows.copy()
    rotate(rows, np.arange(4), inv_freq, 2.0, "norm")
    assert np.array_equal(rows, before)
    assert rotate(rows[:0], np.arange(0), inv_freq, 1.0, "norm").shape == (0, 2, 8)
    assert cos_sin(np.arange(0), inv_freq, 1.0)[0].shape == (0, 4)


def test_float64_tables() -> None:
    positions, inv_freq = np.array([0, 1, 4096, 9_999_991]), frequencies(16)
    cos, sin = cos_sin(positions, inv_freq, 1.0, offset=3, dtype="float64")
    for i, position in enumerate(positions.tolist()):
        for j, frequency in enumerate(inv_freq.tolist()):
            assert (cos[i, j], sin[i, j]) == pytest.approx(
                exact_cos_sin(position + 3, frequency), rel=0, abs=1.5e-15
            )
    with pytest.raises(
        ValueError, match="dtype must be 'float32' or 'float64', not 'float16'"
    ):
        cos_sin(positions, inv_freq, 1.0, dtype="float16")  # type: ignore[arg-type]


# Properties

arrays = st.tuples(
    st.integers(1, 5), st.integers(1, 3), st.integers(2, 20), st.integers(0, 2**32 - 1)
).map(lambda t: random_rows(*t))
layouts = st.sampled_from(LAYOUTS)
gains = st.floats(0.25, 4.0)


@st.composite
def cases(draw) -> tuple[Any, ...]:
    rows = draw(arrays)
    n_pairs = draw(st.integers(1, rows.shape[2] // 2))
    inv_freq = np.array(
        draw(st.lists(st.floats(-2.0, 2.0), min_size=n_pairs, max_size=n_pairs))
    )
    positions = draw(
        st.lists(st.integers(-(10**7), 10**7), min_size=len(rows), max_size=len(rows))
    )
    return rows, np.array(positions), inv_freq, draw(gains), draw(layouts)


@given(cases(), st.booleans())
def test_any_request_matches_float64(case, inverse) -> None:
    rows, positions, inv_freq, gain, layout = case
    out = rotate(rows, positions, inv_freq, gain, layout, inverse=inverse)
    np.testing.assert_allclose(
        out, reference(*case, inverse), rtol=0, atol=8 * HALF_UNIT
    )
    assert worst_error(out, *case, inverse=inverse).error <= 4 * HALF_UNIT


@given(cases())
def test_inverse_undoes(case) -> None:
    rows, *request = case
    there = rotate(rows, *request)
    np.testing.assert_allclose(
        rotate(there, *request, inverse=True), rows, rtol=0, atol=1e-6
    )


@given(cases(), st.integers(-(10**6), 10**6))
def test_rotations_add_up(case, shift) -> None:
    """What a context shift relies on: turning by p and then by a shift is turning by p + shift."""
    rows, positions, inv_freq, _, layout = case
    twice = rotate(
        rotate(rows, positions, inv_freq, 1.0, layout),
        np.full_like(positions, shift),
        inv_freq,
        1.0,
        layout,
    )
    once = rotate(rows, positions + shift, inv_freq, 1.0, layout)
    np.testing.assert_allclose(twice, once, rtol=0, atol=5e-7)


@settings(max_examples=300)
@given(
    shape=st.tuples(*[st.integers(0, 4)] * 3),
    n_positions=st.integers(0, 4),
    n_pairs=st.integers(0, 3),
    gain=st.floats(),
    threads=st.integers(-1, 3),
    frequency=st.floats(),
    position=st.integers(-(2**63), 2**63 - 1),
)
def test_any_arguments_work_or_raise(
    shape, n_positions, n_pairs, gain, threads, frequency, position
) -> None:
    rows, positions = np.zeros(shape, np.float32), np.full(n_positions, position)
    inv_freq = np.full(n_pairs, frequency)
    try:
        out = rotate(rows, positions, inv_freq, gain, "neox", threads=threads)
    except ValueError:
        return
    assert out.shape == shape
    assert np.isfinite(out).all()


def test_documented_examples() -> None:
    assert doctest.testmod(ggext.native).failed == 0
