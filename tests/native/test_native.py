"""The extension against numpy's float64, against exact arithmetic, and against hostile callers."""

from __future__ import annotations

import ctypes
import doctest
import importlib
import math
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import ggext.native
from ggext import _native
from ggext.errors import GgextError
from ggext.native import Device, Rotation, cos_sin, rotate, rotate_between, worst_error

HALF_UNIT = 6.1e-8  # half a unit in the last place of a float32 in [1, 2), and some
LAYOUTS = ("norm", "neox")
# 2 pi to 70 digits; the true one differs by less than 1e-69.
TWO_PI = Fraction(
    "6.283185307179586476925286766559005768394338798750211641949889184615633"
)


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


# CUDA: compiled where a toolkit is found, run where a device is


@pytest.mark.parametrize(("device", "name"), [("cuda", "CUDA"), ("metal", "Metal")])
def test_a_gpu_is_offered_or_refused_in_one_clear_error(
    device: Device, name: str
) -> None:
    if ggext.native.available(device):
        assert importlib.import_module(f"ggext._{device}").devices()[0] >= 1
        return
    with pytest.raises(GgextError, match=rf"{name} was asked for, but .* use the CPU"):
        rotate(**GOOD, device=device)


@pytest.mark.skipif(ggext.native.available("cuda"), reason="there is a CUDA device")
def test_cuda_is_not_measured_where_there_is_none() -> None:
    with pytest.raises(GgextError, match=r"CUDA was asked for, but .* use the CPU"):
        ggext.native.cuda_seconds(POSITIONS, INV_FREQ, "norm", (2, 8), "float32")


needs_metal = pytest.mark.skipif(
    not ggext.native.available("metal"), reason="no Metal device, or no Metal backend"
)


@needs_metal
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_metal_is_as_exact_as_float32(dtype, layout) -> None:
    rng = np.random.default_rng(3)
    rows = as_type(dtype, random_rows(70, 19, 96))
    positions, inv_freq = rng.integers(-(2**30), 2**30, 70), frequencies(32)
    unit = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    size = float(np.abs(values_of(dtype, rows)).max())
    for inverse in (False, True):
        arguments = (rows, positions, inv_freq, 1.25, layout)
        on_metal = rotate(
            *arguments, inverse=inverse, offset=5, dtype=dtype, device="metal"
        )
        error = ggext.native.worst_error(
            on_metal, *arguments, inverse=inverse, offset=5, dtype=dtype
        ).error
        assert error <= 1.25 * size * (6e-7 + 2 * unit)
    assert rotate(
        rows[:0], positions[:0], inv_freq, 1.0, layout, dtype=dtype, device="metal"
    ).shape == (0, 19, 96)


def test_cuda_backend_loads_without_a_device() -> None:
    cuda = pytest.importorskip(
        "ggext._cuda", reason="this build has no CUDA backend: no nvcc was found"
    )
    n_devices, reason = cuda.devices()
    assert (n_devices == 0) == (reason is not None)
    with pytest.raises(TypeError, match="rows must be float32"):
        cuda.rotate(
            ROWS.astype(np.float64),
            0,
            (POSITIONS, 0, INV_FREQ, 1.0),
            None,
            False,
            1,
            ROWS.copy(),
        )
    with pytest.raises(ValueError, match="out of range"):
        cuda.measure(0, (POSITIONS, 0, INV_FREQ, 1.0), False, 2, 7, 1)
    if n_devices == 0:
        with pytest.raises(RuntimeError):
            cuda.rotate(
                ROWS, 0, (POSITIONS, 0, INV_FREQ, 1.0), None, False, 1, ROWS.copy()
            )


needs_cuda = pytest.mark.skipif(
    not ggext.native.available("cuda"), reason="no CUDA device, or no CUDA backend"
)


@needs_cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("dim", "n_rot"), [(128, 128), (96, 32), (3, 2), (300, 260), (80, 48), (4120, 4120)]
)
def test_cuda_gives_the_bits_of_the_cpu(dtype, layout, dim, n_rot) -> None:
    rng = np.random.default_rng(3)
    rows = as_type(dtype, random_rows(70, 19, dim))
    positions, inv_freq = rng.integers(-(2**30), 2**30, 70), frequencies(n_rot)
    for inverse in (False, True):
        arguments = (rows, positions, inv_freq, 1.25, layout)
        on_cuda = rotate(
            *arguments, inverse=inverse, offset=5, dtype=dtype, device="cuda"
        )
        on_cpu = rotate(*arguments, inverse=inverse, offset=5, dtype=dtype)
        assert np.array_equal(on_cuda, on_cpu)
    before, after = (
        Rotation(positions, inv_freq, 1.2),
        Rotation(np.arange(70, dtype=np.int32), inv_freq / 4, 1.1, 9),
    )
    assert np.array_equal(
        rotate_between(rows, before, after, layout, dtype=dtype, device="cuda"),
        rotate_between(rows, before, after, layout, dtype=dtype),
    )


@needs_cuda
def test_cuda_takes_more_rows_than_a_slab_and_none() -> None:
    rows, inv_freq = (
        np.zeros((40_000, 16, 128), np.float32),
        frequencies(128),
    )  # 312 MiB
    rows[-1] = random_rows(1, 16, 128)
    positions = np.arange(40_000)
    assert np.array_equal(
        rotate(rows, positions, inv_freq, 1.0, "neox", device="cuda"),
        rotate(rows, positions, inv_freq, 1.0, "neox"),
    )
    assert rotate(
        rows[:0], positions[:0], inv_freq, 1.0, "norm", device="cuda"
    ).shape == (
        0,
        16,
        128,
    )


# Hostile callers

GOOD: dict[str, Any] = {
    "rows": random_rows(4, 2, 8),
    "positions": np.arange(4),
    "inv_freq": frequencies(8),
    "attention_factor": 1.0,
    "layout": "norm",
    "threads": 1,
}


def unaligned(array: NDArray[Any]) -> NDArray[Any]:
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    raw[:] = np.frombuffer(array.tobytes(), np.uint8)
    return raw.view(array.dtype).reshape(array.shape)


ROWS, POSITIONS, INV_FREQ = GOOD["rows"], GOOD["positions"], GOOD["inv_freq"]
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


# llama.cpp's log -----------------------------------------------------------------------------------

add_to_log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
    _native.log_callback()
)


def test_a_thread_gets_what_was_logged_in_it() -> None:
    _native.take_log()
    texts: list[bytes] = []

    def other() -> None:
        add_to_log(4, b"theirs", None)
        texts.append(_native.take_log())

    add_to_log(2, b"one\n", None)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    add_to_log(5, b"", None)
    add_to_log(1, b"of a debugger", None)
    add_to_log(4, None, None)
    add_to_log(-1, b"of no level", None)
    assert texts == [b"4theirs\0"]
    assert _native.take_log() == b"2one\n\x005\x00"
    assert _native.take_log() == b""


def test_a_log_is_bounded() -> None:
    """What a stranger's file makes llama.cpp log, and no one reads."""
    for number in range(5000):
        add_to_log(3, b"%d" % number + b"x" * 500, None)
    add_to_log(3, b"y" * (1 << 20), None)
    taken = _native.take_log()
    assert 0 < len(taken) <= 1 << 18
    assert taken.endswith(b"34999" + b"x" * 500 + b"\0")


def test_documented_examples() -> None:
    assert doctest.testmod(ggext.native).failed == 0
