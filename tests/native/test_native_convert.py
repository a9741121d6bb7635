"""The native conversion of values, bit for bit against numpy, the gguf package and ggml itself."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from paths import ROOT

from ggext import _native, native

PATTERNS = np.arange(65536, dtype=np.uint32).astype(np.uint16)


@pytest.fixture(params=[0, 1, 2], ids=["plain", "avx2", "avx512"])
def vectors(request: pytest.FixtureRequest) -> Iterator[None]:
    before = _native.use_vectors(request.param)
    if _native.use_vectors(request.param) < request.param:
        _native.use_vectors(before)
        pytest.skip("this processor has not these instructions")
    yield
    _native.use_vectors(before)


def of_bf16(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (bits.astype("<u4") << 16).view("<f4")


def assert_same(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    """Bit for bit; a NaN is any NaN."""
    nan = np.isnan(wanted.astype(np.float32))
    assert np.array_equal(np.isnan(got.astype(np.float32)), nan)
    assert np.array_equal(
        got[~nan].view(f"u{got.itemsize}"), wanted[~nan].view(f"u{got.itemsize}")
    )


def awkward_floats() -> np.ndarray[Any, Any]:
    """Every exponent with mantissas that are ties, nearly ties and random, below the largest
    float16."""
    mantissas = [
        0,
        1,
        0xFFF,
        0x1000,
        0x1001,
        0x1FFF,
        0x2000,
        0x2FFF,
        0x3000,
        0x3001,
        0x7FFF,
        0x8000,
        0x8001,
        0x7FFFFF,
    ]
    mantissas += np.random.default_rng(0).integers(0, 1 << 23, 64).tolist()
    bits = (
        np.arange(0, 256, dtype=np.uint32)[:, None] << 23
        | np.array(mantissas, np.uint32)
    ).reshape(-1)
    return np.concatenate([bits, bits | np.uint32(1 << 31)]).view("<f4")


@pytest.mark.usefixtures("vectors")
def test_all_bfloat16() -> None:
    values = of_bf16(PATTERNS)
    assert_same(native.convert(PATTERNS, "float32", dtype="bfloat16"), values)
    small = PATTERNS[~(np.isfinite(values) & (np.abs(values) >= 65520))]
    assert_same(
        native.convert(small, "float16", dtype="bfloat16"), of_bf16(small).astype("<f2")
    )


@pytest.mark.usefixtures("vectors")
def test_all_float16() -> None:
    halves = PATTERNS.view("<f2")
    assert_same(native.convert(halves, "float32"), halves.astype("<f4"))
    assert_same(native.convert(halves, "float16"), halves)
    assert_same(
        of_bf16(native.convert(halves, "bfloat16")),
        of_bf16(rounded_to_bf16(halves.astype("<f4"))),
    )


def rounded_to_bf16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(values[None], GGMLQuantizationType.BF16).view("<u2")[0]


@pytest.mark.usefixtures("vectors")
def test_float32_with_every_exponent() -> None:
    values = awkward_floats()
    for_f16 = values[~(np.isfinite(values) & (np.abs(values) >= 65520))]
    assert_same(native.convert(for_f16, "float16"), for_f16.astype("<f2"))
    for_bf16 = values[~(np.isfinite(values) & (np.abs(values) >= 3.3961776e38))]
    assert_same(
        of_bf16(native.convert(for_bf16, "bfloat16")),
        of_bf16(rounded_to_bf16(for_bf16)),
    )


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(arrays(np.float32, st.integers(0, 300), elements=FLOATS))
def test_a_lost_value_is_the_first_finite_one_that_becomes_infinite(
    values: np.ndarray[Any, Any],
) -> None:
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    lost = np.flatnonzero(np.isinf(halves) & np.isfinite(values))
    if len(lost) == 0:
        assert_same(native.convert(values, "float16"), halves)
        return
    with pytest.raises(native.ValueLostError) as caught:
        native.convert(values, "float16")
    assert (caught.value.place, caught.value.value) == (lost[0], values[lost[0]])


def test_lost_values_far_into_an_array() -> None:
    for place in (0, 4095, 4096, 9999):
        values = np.zeros(10_000, np.float32)
        values[place] = 65520
        with pytest.raises(
            native.ValueLostError,
            match=f"float16 cannot hold the value 65520 at {place}",
        ):
            native.convert(values, "float16")
        values[place] = 65519.996
        assert native.convert(values, "float16")[place] == 65504
        bits = np.full(10_000, 0x7F7F, np.uint16)  # the largest bfloat16 stays one
        assert np.array_equal(native.convert(bits, "bfloat16", dtype="bfloat16"), bits)


def blocks_of_weights() -> np.ndarray[Any, Any]:
    """Weights, tiny and huge ones, zeros of both signs, and blocks whose quants lie halfway between
    whole numbers."""
    generator = np.random.default_rng(1)
    weights = generator.standard_normal((4096, 32)).astype("<f4") * np.float32(0.02)
    sizes = 2.0 ** generator.integers(-100, 23, (2048, 1))
    scaled = (
        (generator.standard_normal((2048, 32)) * sizes).astype("<f4").clip(-8e6, 8e6)
    )
    halves = generator.integers(-253, 254, (2048, 32)).astype("<f4") / 2
    halves[:, 0] = 127
    zeros = np.zeros((2, 32), "<f4")
    zeros[1] = -0.0
    nearly = np.full((1, 32), np.nextafter(np.float32(0.5), np.float32(0)), "<f4")
    nearly[0, 0] = 127
    return np.concatenate([weights, scaled, halves, zeros, nearly]).reshape(-1)


@pytest.mark.usefixtures("vectors")
def test_q8_0_is_the_gguf_packages() -> None:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    values = blocks_of_weights()
    assert np.array_equal(
        native.convert(values, "q8_0"),
        quantize(values[None], GGMLQuantizationType.Q8_0)[0],
    )
    halves, bits = values[: 4096 * 32].astype("<f2"), native.convert(values, "bfloat16")
    wide = quantize(halves.astype("<f4")[None], GGMLQuantizationType.Q8_0)[0]
    assert np.array_equal(native.convert(halves, "q8_0"), wide)
    wide = quantize(of_bf16(bits)[None], GGMLQuantizationType.Q8_0)[0]
    assert np.array_equal(native.convert(bits, "q8_0", dtype="bfloat16"), wide)


def test_q8_0_is_ggmls() -> None:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        pytest.skip("llama-cpp-python is not installed")
    ggml = ctypes.CDLL(
        str(next((Path(spec.origin).parent / "lib").glob("libggml-base.*")))
    )
    values = blocks_of_weights()
    out = np.empty(values.size // 32 * 34, np.uint8)
    ggml.quantize_row_q8_0_ref.argtypes = (
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
    )
    ggml.quantize_row_q8_0_ref(values.ctypes.data, out.ctypes.data, values.size)
    assert np.array_equal(native.convert(values, "q8_0"), out)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e7, 3e38])
@pytest.mark.parametrize("place", [0, 31, 32, 95])
def test_blocks_that_q8_0_cannot_hold(wrong: float, place: int) -> None:
    values = np.ones(96, np.float32)
    values[place] = wrong
    with pytest.raises(native.ValueLostError) as caught:
        native.convert(values, "q8_0")
    assert caught.value.place == place
    assert np.isnan(wrong) or caught.value.value == np.float32(wrong)


def test_blocks_too_small_for_a_scale_are_zero() -> None:
    for size in (1e-45, 1e-40, 1e-37):
        packed = native.convert(np.full(32, size, np.float32), "q8_0")
        assert packed[:2].tolist() == [0, 0]


def test_nothing_is_nothing() -> None:
    for to in ("float32", "float16", "bfloat16", "q8_0"):
        assert native.convert(np.empty(0, np.float32), to).size == 0  # type: ignore[arg-type]


FLOAT, HALF, BYTES = (
    np.zeros(64, np.float32),
    np.zeros(64, np.float16),
    np.zeros(68, np.uint8),
)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (FLOAT, -1, HALF, 1),
            ValueError,
            "type must be 0 to 2 and out_type 0 to 3, not -1 and 1",
        ),
        ((FLOAT, 0, HALF, 4), ValueError, "not 0 and 4"),
        ((HALF, 0, HALF, 1), TypeError, "values must be float32"),
        ((FLOAT, 0, HALF, 3), TypeError, "out must be uint8"),
        ((FLOAT, 0, HALF[:63], 1), ValueError, "out must have 64 items, not 63"),
        ((FLOAT, 0, BYTES[:67], 3), ValueError, "out must have 68 items, not 67"),
        (
            (FLOAT[:33], 0, BYTES, 3),
            ValueError,
            "33 items, which are not whole blocks of 32",
        ),
        ((FLOAT[::2], 0, HALF[:32], 1), ValueError, "C-contiguous"),
        (
            (FLOAT.reshape(8, 8), 0, HALF, 1),
            ValueError,
            "values must have 1 dimensions, not 2",
        ),
        ((FLOAT, 0, b"read-only", 3), ValueError, "out must be a writable"),
        ((FLOAT, 0, FLOAT, 0), ValueError, "out overlaps values"),
        ((FLOAT[:32], 0, FLOAT[31:63], 0), ValueError, "out overlaps values"),
        ((FLOAT, 0, [0.0], 0), TypeError, "out must be an array"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _native.convert(*arguments)


def test_the_face_refuses_unknown_types() -> None:
    with pytest.raises(
        ValueError,
        match="to must be one of float32, float16, bfloat16, q8_0, not 'q4_0'",
    ):
        native.convert(FLOAT, "q4_0")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="values must be float32, float16"):
        native.convert(np.zeros(4), "float32")  # type: ignore[arg-type]


def test_reserving_keeps_the_size(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        reserved = _native.reserve(file.fileno(), 1 << 20)
        status = os.fstat(file.fileno())
        assert status.st_size == 0
        assert reserved == (status.st_blocks * 512 >= 1 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems reserve nothing")
def test_reserving_too_much(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        if not _native.reserve(file.fileno(), 4096):
            pytest.skip("this file system reserves nothing")
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which of the two is the file system's choice
            _native.reserve(file.fileno(), 1 << 50)
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
        with pytest.raises(ValueError, match="nbytes must be 1 or more"):
            _native.reserve(file.fileno(), 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.reserve(10_000, 4096)


def test_copying_gives_the_same_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 12_000  # 3 MB: more than is copied at once
    (tmp_path / "a").write_bytes(data)
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("w+b") as target:
        assert (
            _native.copy(source.fileno(), target.fileno(), 5, 100, 2_500_000)
            == 2_500_000
        )
        assert target.read() == bytes(100) + data[5:2_500_005]
        assert (
            _native.copy(source.fileno(), target.fileno(), len(data) - 7, 0, 100) == 7
        )  # the source ends
        with pytest.raises(OSError, match="Bad file descriptor"):
            _native.copy(source.fileno(), source.fileno(), 0, 0, 1)
        with pytest.raises(ValueError, match="0 or more"):
            _native.copy(source.fileno(), target.fileno(), 0, -1, 1)
        with pytest.raises(ValueError, match=r"below 2\*\*63"):
            _native.copy(source.fileno(), target.fileno(), 2**63 - 1, 0, 1)


def test_a_system_that_writes_nothing_ends_the_copy(tmp_path: Path) -> None:
    """The source file itself, built with a pwrite that returns 0: the copy must not wait for ever."""
    compiler = shutil.which("cc")
    if (
        compiler is None
        or not (ROOT / "native" / "files.c").is_file()
        or sys.platform == "win32"
    ):
        pytest.skip("no C compiler, or not a source tree")
    (tmp_path / "full.c").write_text(
        '#include "files.c"\n'
        "ssize_t pwrite_nothing(int file, const void *data, size_t length, off_t at)\n"
        "{\n    return (void)file, (void)data, (void)length, (void)at, 0;\n}\n"
    )
    flags = ["-shared", "-fPIC", "-Dpwrite=pwrite_nothing", f"-I{ROOT / 'native'}"]
    built = [compiler, *flags, "full.c", "-o", "full.so"]
    subprocess.run(built, cwd=tmp_path, check=True, timeout=60)
    library = ctypes.CDLL(str(tmp_path / "full.so"))
    copied = ctypes.c_int64(-1)
    with (
        (tmp_path / "full.c").open("rb") as source,
        (tmp_path / "b").open("w+b") as target,
    ):
        copy = (
            ctypes.c_int64(0),
            ctypes.c_int64(0),
            ctypes.c_int64(20),
            ctypes.byref(copied),
        )
        assert (
            library.ggext_copy(source.fileno(), target.fileno(), *copy) == errno.ENOSPC
        )
    assert copied.value == 0
