"""Rows of 16 and 32 bits: each value is rounded once, in every layout and on every path."""

from __future__ import annotations

import numpy as np
import pytest
from rotations import (
    DTYPES,
    INV_FREQ,
    LAYOUTS,
    POSITIONS,
    ROWS,
    as_type,
    frequencies,
    random_rows,
    reference,
    values_of,
)

from ggext import _native
from ggext.native import Rotation, rotate, rotate_between, worst_error

UNIT = {
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}  # of a value in [1, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "n_rot"), [(128, 128), (96, 32), (3, 2), (300, 260)])
def test_every_type_is_rounded_once(dtype, layout, inverse, dim, n_rot) -> None:
    positions = np.array([0, 1, 17, 131_071, 1_000_000, -5])
    rows, inv_freq = (
        as_type(dtype, random_rows(len(positions), 3, dim)),
        frequencies(n_rot),
    )
    out = rotate(
        rows, positions, inv_freq, 1.25, layout, inverse=inverse, offset=40, dtype=dtype
    )
    expected = reference(
        values_of(dtype, rows), positions + 40, inv_freq, 1.25, layout, inverse
    )
    assert out.dtype == rows.dtype
    error = np.abs(values_of(dtype, out) - expected)
    half_unit = (
        UNIT[dtype]
        / 2
        * np.maximum(2.0 ** np.floor(np.log2(np.abs(expected) + 1e-300)), 2.0**-14)
    )
    assert (error <= half_unit + 1e-9).all()
    assert np.array_equal(out[..., n_rot:], rows[..., n_rot:])
    worst = worst_error(
        out,
        rows,
        positions,
        inv_freq,
        1.25,
        layout,
        inverse=inverse,
        offset=40,
        dtype=dtype,
    )
    assert worst.error == pytest.approx(error.max(), rel=0, abs=1e-9)


@pytest.mark.parametrize("vectors", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_16_bit_values_and_all_ties(dtype, vectors) -> None:
    """By angle 0 every value comes back; by a gain of 1/2 and 3/2, all roundings of ties and tiny
    values."""
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 2, 128)
    rows = bits if dtype == "bfloat16" else bits.view(np.float16)
    values = values_of(dtype, rows)
    keep, zeros = np.isfinite(values), np.zeros(256, np.int64)
    before = _native.use_vectors(vectors)
    try:
        for gain in (1.0, 0.5, 1.5, 2.0**-10, 0.3):
            out = rotate(rows, zeros, np.ones(64), gain, "neox", dtype=dtype)
            expected = as_type(dtype, np.where(keep, values, 0.0) * gain)
            # A pair with an infinity or NaN is NaN in both, since 0 · ∞ is.
            clean = keep & np.roll(keep, 64, axis=2)
            assert np.array_equal(
                values_of(dtype, out)[clean], values_of(dtype, expected)[clean]
            )
            assert np.isnan(values_of(dtype, out)[~keep & np.isnan(values)]).all()
            assert not np.isfinite(values_of(dtype, out)[~keep]).any()
    finally:
        _native.use_vectors(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_vector_instructions_change_no_bit(dtype, layout) -> None:
    rows = as_type(
        dtype,
        random_rows(40, 3, 150)
        * 10.0 ** np.random.default_rng(1).integers(-42, 38, (40, 3, 150)),
    )
    arguments = (np.arange(40) * 1001 - 20_000, frequencies(146), 1.25, layout)
    results = []
    for level in (0, 1, 2):
        before = _native.use_vectors(level)
        try:
            results.append(rotate(rows, *arguments, dtype=dtype).tobytes())
        finally:
            _native.use_vectors(before)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "n_rot"), [(128, 128), (96, 32), (300, 260)])
def test_rotate_between_matches_float64(dtype, layout, dim, n_rot) -> None:
    rng = np.random.default_rng(2)
    old, new = (
        rng.integers(0, 2_000_000, 6),
        rng.integers(0, 2_000_000, 6).astype(np.int32),
    )
    plain = random_rows(6, 3, dim)
    old_freq, new_freq = frequencies(n_rot), frequencies(n_rot, 500_000.0) / 4
    rows = as_type(dtype, reference(plain, old, old_freq, 1.25, layout))
    out = rotate_between(
        rows,
        Rotation(old - 7, old_freq, 1.25, offset=7),
        Rotation(new, new_freq, 1.1),
        layout,
        dtype=dtype,
    )
    plain_again = reference(
        values_of(dtype, rows), old, old_freq, 1.25, layout, inverse=True
    )
    expected = reference(plain_again, new, new_freq, 1.1, layout)
    np.testing.assert_allclose(
        values_of(dtype, out), expected, rtol=0, atol=UNIT[dtype]
    )
    np.testing.assert_allclose(
        values_of(dtype, out),
        reference(plain, new, new_freq, 1.1, layout),
        rtol=0,
        atol=3 * UNIT[dtype],
    )


def test_rotate_between_checks_both() -> None:
    good = Rotation(POSITIONS, INV_FREQ)
    for bad, message in [
        (Rotation(np.arange(5), INV_FREQ), "same number of positions, not 5 and 4"),
        (
            Rotation(POSITIONS, INV_FREQ[:3].copy()),
            "same number of frequencies, not 3 and 4",
        ),
        (
            Rotation(POSITIONS, [1.0, np.nan, 1.0, 1.0]),
            r"inv_freq\[1\] is not a finite number but nan",
        ),
        (
            Rotation(POSITIONS, INV_FREQ, 0.0),
            "attention_factor must be a finite number above 0, not 0.0",
        ),
        (
            Rotation(POSITIONS + 2**31, INV_FREQ),
            r"positions\[1\] is too large: 2147483649",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            rotate_between(ROWS, bad, good, "norm")
    tiny, huge = (
        Rotation(POSITIONS, INV_FREQ, 1e-200),
        Rotation(POSITIONS, INV_FREQ, 1e200),
    )
    with pytest.raises(
        ValueError,
        match="quotient of the attention factors must be a finite number above 0, not inf",
    ):
        rotate_between(ROWS, tiny, huge, "norm")
