"""CUDA and Metal: offered where they are, refused in one error where they are not."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from rotations import (
    DTYPES,
    GOOD,
    INV_FREQ,
    LAYOUTS,
    POSITIONS,
    ROWS,
    as_type,
    frequencies,
    random_rows,
    values_of,
)

import ggext.native
from ggext.errors import GgextError
from ggext.native import Device, Rotation, rotate, rotate_between

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
