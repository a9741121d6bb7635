"""The Metal kernels, compiled as C++ and run on the CPU: their arithmetic and their indexing,
without an Apple GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from paths import ROOT

from ggext import native

HERE = Path(__file__).parent
NATIVE = ROOT / "native"
#: Turns in a radian to 60 digits, 1 / (2 pi).
TURNS = Fraction("0.159154943091895335768883763372514362034459645740456448747667")
COMPILER = shutil.which("c++")

pytestmark = pytest.mark.skipif(
    COMPILER is None or not (NATIVE / "rope.metal").is_file(),
    reason="no C++ compiler, or not a source tree",
)


class MetalRope(ctypes.Structure):
    """native/rope_metal.h"""

    _fields_ = [
        (name, ctypes.c_uint32) for name in ("n_pairs", "n_heads", "head_dim", "layout")
    ] + [("gain", ctypes.c_float)]


@pytest.fixture(scope="module")
def metal(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Literals are float32, as in Metal; the host's part is compiled apart from it, as it is
    float64."""
    out = tmp_path_factory.mktemp("metal")
    flags = [
        "-O1",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-ffp-contract=off",
        f"-I{HERE / 'metal'}",
        f"-I{NATIVE}",
    ]
    device, host = str(HERE / "metal" / "run.cpp"), str(HERE / "metal" / "host.c")
    as_metal = ["-std=c++17", "-Wno-attributes", "-fsingle-precision-constant"]
    for command in (
        [*flags, *as_metal, "-c", device, "-o", str(out / "device.o")],
        [*flags, "-x", "c", "-std=c11", "-c", host, "-o", str(out / "host.o")],
        [
            "-shared",
            str(out / "device.o"),
            str(out / "host.o"),
            "-o",
            str(out / "metal.so"),
        ],
    ):
        assert COMPILER is not None
        subprocess.run([COMPILER, *command], check=True)
    library = ctypes.CDLL(str(out / "metal.so"))
    library.fraction_of_turn.argtypes = [ctypes.c_double]
    library.fraction_of_turn.restype = ctypes.c_uint64
    return library


def fractions(metal: ctypes.CDLL, inv_freq: NDArray[np.float64]) -> NDArray[np.uint64]:
    return np.array([metal.fraction_of_turn(value) for value in inv_freq], np.uint64)


def pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def test_a_tokens_fraction_of_a_turn_is_right_to_one_unit(metal: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    for inv_freq in [
        0.0,
        1.0,
        -1.0,
        np.pi,
        2 * np.pi,
        1e-9,
        *rng.uniform(0, 1, 500),
        *rng.uniform(0, 2**40, 200),
    ]:
        exact = Fraction(float(inv_freq)) * TURNS * 2**64
        difference = (Fraction(metal.fraction_of_turn(inv_freq)) - exact) % 2**64
        assert min(difference, 2**64 - difference) <= 1 + abs(exact) / 2**100, inv_freq


@pytest.mark.parametrize("layout", ["norm", "neox"])
@pytest.mark.parametrize(
    ("dtype", "unit"), [("float32", 0.0), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)]
)
def test_rows_are_turned_as_on_the_cpu(
    metal: ctypes.CDLL, dtype: str, unit: float, layout: str
) -> None:
    """Up to position 2^31, back and from table to table; a head's tail and what lies after the
    grid stay."""
    rng = np.random.default_rng(1)
    n_rows, n_heads, head_dim, n_pairs = 40, 3, 22, 9
    values = rng.uniform(-1, 1, (n_rows, n_heads, head_dim)).astype(np.float32)
    rows = {"float32": values, "float16": values.astype(np.float16)}.get(dtype)
    if rows is None:
        rows = (values.view(np.uint32) >> 16).astype(np.uint16)
    to, start = (
        10_000.0 ** (-np.arange(n_pairs) / n_pairs),
        5e5 ** (-np.arange(n_pairs) / n_pairs),
    )
    to_positions = rng.integers(-(2**31), 2**31, n_rows)
    from_positions = rng.integers(0, 2**20, n_rows)
    after = native.Rotation(to_positions, to, 1.2)
    for before in (None, native.Rotation(from_positions, start, 1.1)):
        turned = rows.copy()
        rope = MetalRope(
            n_pairs, n_heads, head_dim, layout == "neox", 1.2 / (1.1 if before else 1.0)
        )
        from_fractions = (
            fractions(metal, start) if before else np.zeros(n_pairs, np.uint64)
        )
        metal.run(
            ["float32", "float16", "bfloat16"].index(dtype),
            pointer(turned),
            ctypes.byref(rope),
            pointer(fractions(metal, to)),
            pointer(to_positions),
            pointer(from_fractions),
            pointer(from_positions),
            n_rows,
            n_pairs + 4,
        )
        single = values_of(rows)
        exact = (
            native.rotate_between(single, before, after, layout)
            if before
            else native.rotate(single, to_positions, to, 1.2, layout)
        )
        assert np.abs(values_of(turned) - exact).max() <= 1.2 * (4e-7 + 2 * unit)
        assert np.array_equal(turned[..., 2 * n_pairs :], rows[..., 2 * n_pairs :])


def values_of(rows: NDArray[Any]) -> NDArray[np.float32]:
    """float32 values; uint16 is bfloat16."""
    return (
        (rows.astype(np.uint32) << 16).view(np.float32)
        if rows.dtype == np.uint16
        else rows.astype(np.float32)
    )
