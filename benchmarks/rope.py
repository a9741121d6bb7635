"""How fast rows are rotated: GB/s of ggext, of ggml's CPU op and of torch, against memcpy of the
same bytes.

    python benchmarks/rope.py [--positions 4096] [--heads 32] [--dim 128] [--threads 2] [--rounds
    15]

Bytes are counted once read and once written. Each round times every contestant once, in turn, so
that what else the machine does hits all alike; the table gives the median time, and the median of
each round's ratio to its own memcpy. ggml and torch are left out, with the reason, where they are
not installed. With a CUDA device, its rows follow.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ggext import native

Work = Callable[[], object]
LAYOUTS: tuple[native.Layout, ...] = ("norm", "neox")
DTYPES: tuple[native.Dtype, ...] = ("float32", "float16", "bfloat16")


class Shape(NamedTuple):
    positions: int
    heads: int
    dim: int
    threads: int


class Contestant(NamedTuple):
    name: str
    dtype: native.Dtype
    work: Work


def inv_freq(dim: int) -> np.ndarray:
    return 10_000.0 ** (-np.arange(0, dim, 2) / dim)


def random_rows(shape: Shape, dtype: native.Dtype) -> np.ndarray:
    values = np.random.default_rng(0).uniform(-1, 1, shape[:3]).astype(np.float32)
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def memcpy(shape: Shape, dtype: native.Dtype) -> Contestant:
    """memcpy of the rows by as many threads as the others have, each with its part."""
    rows = random_rows(shape, dtype)
    out = np.zeros_like(rows)
    pool = ThreadPoolExecutor(shape.threads)
    bounds = np.linspace(0, rows.nbytes, shape.threads + 1).astype(int).tolist()
    parts = [
        (out.ctypes.data + a, rows.ctypes.data + a, b - a)
        for a, b in itertools.pairwise(bounds)
    ]

    def work() -> None:
        list(pool.map(lambda part: ctypes.memmove(*part), parts))

    return Contestant("memcpy", dtype, work)


def ggext_rotations(shape: Shape, dtype: native.Dtype) -> Iterator[Contestant]:
    """Ours, out of place and in place (in place, the rows lose nothing: gain 1)."""
    positions, table = np.arange(shape.positions, dtype=np.int32), inv_freq(shape.dim)
    for layout in LAYOUTS:
        rows = random_rows(shape, dtype)
        for place, out in (("", np.zeros_like(rows)), (", in place", rows)):

            def work(
                rows: Any = rows, layout: native.Layout = layout, out: Any = out
            ) -> None:
                native.rotate(
                    rows,
                    positions,
                    table,
                    1.0,
                    layout,
                    dtype=dtype,
                    out=out,
                    threads=shape.threads,
                )

            yield Contestant(f"ggext {layout}{place}", dtype, work)


class InitParams(ctypes.Structure):
    """ggml's struct ggml_init_params."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def ggml_library() -> ctypes.CDLL:
    """Every ggml function that is used here, from the libraries that llama-cpp-python brings."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise OSError("llama-cpp-python is not installed")
    folder = Path(spec.origin).parent / "lib"
    base = ctypes.CDLL(
        str(next(folder.glob("libggml-base.*"))), mode=ctypes.RTLD_GLOBAL
    )
    cpu = ctypes.CDLL(str(next(folder.glob("libggml-cpu.*"))))
    pointer, number, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    for library, name, result, arguments in (
        (base, "ggml_init", pointer, (InitParams,)),
        (base, "ggml_new_tensor_3d", pointer, (pointer, number, *[ctypes.c_int64] * 3)),
        (base, "ggml_new_tensor_1d", pointer, (pointer, number, ctypes.c_int64)),
        (base, "ggml_get_data", pointer, (pointer,)),
        (base, "ggml_rope_ext", pointer, (*[pointer] * 4, *[number] * 3, *[real] * 6)),
        (base, "ggml_new_graph", pointer, (pointer,)),
        (base, "ggml_build_forward_expand", None, (pointer, pointer)),
        (cpu, "ggml_graph_compute_with_ctx", number, (pointer, pointer, number)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
        setattr(base, name, function)
    return base


def ggml_rotations(shape: Shape, dtype: native.Dtype) -> Iterator[Contestant]:
    """ggml's rope op on the CPU; it has none for bfloat16."""
    if dtype == "bfloat16":
        return
    ggml = ggml_library()
    f32, f16, i32 = 0, 1, 26
    rows, positions = (
        random_rows(shape, dtype),
        np.arange(shape.positions, dtype=np.int32),
    )
    for layout, mode in zip(LAYOUTS, (0, 2), strict=True):
        context = ggml.ggml_init(
            InitParams(2 * rows.nbytes + positions.nbytes + (16 << 20), None, False)
        )
        a = ggml.ggml_new_tensor_3d(
            context,
            f32 if dtype == "float32" else f16,
            shape.dim,
            shape.heads,
            shape.positions,
        )
        b = ggml.ggml_new_tensor_1d(context, i32, shape.positions)
        ctypes.memmove(ggml.ggml_get_data(a), rows.ctypes.data, rows.nbytes)
        ctypes.memmove(ggml.ggml_get_data(b), positions.ctypes.data, positions.nbytes)
        result = ggml.ggml_rope_ext(
            context,
            a,
            b,
            None,
            shape.dim,
            mode,
            4096,
            10_000.0,
            1.0,
            0.0,
            1.0,
            32.0,
            1.0,
        )
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, result)

        def work(context: Any = context, graph: Any = graph) -> None:
            if ggml.ggml_graph_compute_with_ctx(context, graph, shape.threads) != 0:
                raise RuntimeError("ggml_graph_compute_with_ctx failed")

        work()
        got = np.ctypeslib.as_array(
            ctypes.cast(ggml.ggml_get_data(result), ctypes.POINTER(ctypes.c_uint8)),
            (rows.nbytes,),
        ).view(rows.dtype)
        want = native.rotate(
            rows, positions, inv_freq(shape.dim), 1.0, layout, dtype=dtype
        )
        if not np.allclose(
            got.reshape(rows.shape).astype(np.float32),
            want.astype(np.float32),
            atol=5e-3,
        ):
            raise RuntimeError(
                f"ggml's {layout} rotation gives something else than ours: the benchmark is wrong"
            )
        yield Contestant(f"ggml {layout}", dtype, work)


def torch_rotations(shape: Shape, dtype: native.Dtype) -> Iterator[Contestant]:
    """As models do it: cos and sin are there, float32 or the rows' type; x · cos + rotate_half(x) ·
    sin."""
    import torch

    torch.set_num_threads(shape.threads)
    rows = torch.from_numpy(random_rows(shape, "float32")).to(getattr(torch, dtype))
    angles = torch.from_numpy(np.arange(shape.positions)[:, None] * inv_freq(shape.dim))
    turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]
    half = shape.dim // 2
    cos, sin = (
        torch.cat([t, t], -1).to(rows.dtype)[:, None]
        for t in (angles.cos(), angles.sin())
    )

    def neox() -> None:
        _ = rows * cos + torch.cat([-rows[..., half:], rows[..., :half]], -1) * sin

    def norm() -> None:
        _ = torch.view_as_real(
            torch.view_as_complex(rows.view(*rows.shape[:2], half, 2)) * turns
        )

    if dtype == "float32":
        yield Contestant("torch norm (complex product)", dtype, norm)
    yield Contestant("torch neox (rotate_half)", dtype, neox)


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def contestants(shape: Shape, dtype: native.Dtype) -> Iterator[Contestant]:
    yield memcpy(shape, dtype)
    yield from ggext_rotations(shape, dtype)
    for name, others in (("ggml", ggml_rotations), ("torch", torch_rotations)):
        try:
            yield from others(shape, dtype)
        except (
            ImportError,
            OSError,
            StopIteration,
            AttributeError,
            RuntimeError,
        ) as error:
            print(f"left out: {name}, {dtype}: {error}")


def measure(shape: Shape, dtype: native.Dtype, rounds: int) -> None:
    field = list(contestants(shape, dtype))
    size = 2 * random_rows(shape, dtype).nbytes
    for contestant in field:
        contestant.work()
    times = [[seconds(contestant.work) for contestant in field] for _ in range(rounds)]
    for i, contestant in enumerate(field):
        median = statistics.median(row[i] for row in times)
        ratio = statistics.median(row[0] / row[i] for row in times)
        print(
            f"| {contestant.name} | {dtype} | {size / median / 1e9:.1f} | {ratio:.2f} |",
            flush=True,
        )


def measure_cuda(shape: Shape, rounds: int) -> None:
    """The rotation of rows in device memory against cudaMemcpy within it: the fastest of each."""
    if not native.available("cuda"):
        print("\nleft out: CUDA: no device, or no backend in this build")
        return
    print("\n| CUDA | type | GB/s | of the copy |\n|---|---|---|---|")
    for dtype in DTYPES:
        size = 2 * random_rows(shape, dtype).nbytes
        for layout in LAYOUTS:
            rotation, copy = native.cuda_seconds(
                np.arange(shape.positions),
                inv_freq(shape.dim),
                layout,
                (shape.heads, shape.dim),
                dtype,
                repeats=rounds,
            )
            print(
                f"| ggext {layout} | {dtype} | {size / rotation / 1e9:.0f} | {copy / rotation:.2f} "
                "|"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("positions", 4096),
        ("heads", 32),
        ("dim", 128),
        ("threads", 2),
        ("rounds", 15),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    shape = Shape(options.positions, options.heads, options.dim, options.threads)
    print(
        f"{shape.positions} positions, {shape.heads} heads of {shape.dim}, {shape.threads} "
        "threads\n"
    )
    print("| | type | GB/s | of memcpy |\n|---|---|---|---|")
    with contextlib.suppress(KeyboardInterrupt):
        for dtype in DTYPES:
            measure(shape, dtype, options.rounds)
        measure_cuda(shape, options.rounds)


if __name__ == "__main__":
    main()
