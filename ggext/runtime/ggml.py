"""ggml under llama.cpp: its functions, the layout of its tensors, and its ROPE operation.

Nothing of this is in llama-cpp-python's interface: functions and the layout of ``struct
ggml_tensor`` are declared here, for the one version that ``ggext.runtime.llama`` accepts.
``library`` builds a known ROPE node and reads it back before anything else is read, so other bytes
are a ModelError, not a crash.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.runtime import llama

if TYPE_CHECKING:
    from numpy.typing import NDArray


F32, F16, I32 = 0, 1, 26  # enum ggml_type
_DTYPES = {F32: "<f4", F16: "<f2", I32: "<i4"}
NEOX = 2  # GGML_ROPE_TYPE_NEOX; 0 turns adjacent dimensions
#: GGML_ROPE_TYPE_MROPE and, with more bits, IMROPE: pairs as in NEOX, four positions a token.
MROPE = 8
_OBJECT = 32  # bytes of struct ggml_object in front of a tensor
_LIMIT = 1 << 31  # bytes of a tensor that are read at once

_void = ctypes.c_void_p
_int = ctypes.c_int
_float = ctypes.c_float
_size = ctypes.c_size_t


class Tensor(ctypes.Structure):
    """``struct ggml_tensor``."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", _void),
        ("ne", ctypes.c_int64 * 4),
        ("nb", _size * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", _void * 10),
        ("view_src", _void),
        ("view_offs", _size),
        ("data", _void),
        ("name", ctypes.c_char * 64),
        ("extra", _void),
        ("padding", ctypes.c_char * 8),
    )


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _size), ("mem_buffer", _void), ("no_alloc", ctypes.c_bool))


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (_void, [_InitParams]),
    "ggml_free": (None, [_void]),
    "ggml_tensor_overhead": (_size, []),
    "ggml_graph_overhead": (_size, []),
    "ggml_nbytes": (_size, [_void]),
    "ggml_op_name": (ctypes.c_char_p, [_int]),
    "ggml_type_name": (ctypes.c_char_p, [_int]),
    "ggml_set_name": (_void, [_void, ctypes.c_char_p]),
    "ggml_new_tensor_1d": (_void, [_void, _int, ctypes.c_int64]),
    "ggml_new_tensor_3d": (
        _void,
        [_void, _int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64],
    ),
    "ggml_rope_ext": (_void, [*[_void] * 4, _int, _int, _int, *[_float] * 6]),
    "ggml_new_graph": (_void, [_void]),
    "ggml_build_forward_expand": (None, [_void, _void]),
    "ggml_backend_dev_count": (_size, []),
    "ggml_backend_dev_get": (_void, [_size]),
    "ggml_backend_dev_name": (ctypes.c_char_p, [_void]),
    "ggml_backend_dev_description": (ctypes.c_char_p, [_void]),
    "ggml_backend_dev_type": (_int, [_void]),
    "ggml_commit": (ctypes.c_char_p, []),
    "ggml_backend_dev_memory": (
        None,
        [_void, ctypes.POINTER(_size), ctypes.POINTER(_size)],
    ),
    "ggml_backend_dev_init": (_void, [_void, ctypes.c_char_p]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, [_void, _void]),
    "ggml_backend_free": (None, [_void]),
    "ggml_backend_alloc_ctx_tensors": (_void, [_void, _void]),
    "ggml_backend_buffer_free": (None, [_void]),
    "ggml_backend_tensor_set": (None, [_void, _void, _size, _size]),
    "ggml_backend_tensor_get": (None, [_void, _void, _size, _size]),
    "ggml_backend_graph_compute": (_int, [_void, _void]),
}


@dataclass(frozen=True)
class RopeCall:
    """The parameters of one ROPE operation, under ggml's names. ``factors``: src[2], by which each
    pair's angle is divided, ``None`` without."""

    n_dims: int
    mode: int
    n_ctx_orig: int
    freq_base: float
    freq_scale: float
    ext_factor: float
    attn_factor: float
    beta_fast: float
    beta_slow: float
    factors: tuple[float, ...] | None = None

    @property
    def layout(self) -> str:
        return "neox" if self.mode & (NEOX | MROPE) else "norm"


def library() -> Any:
    """ggml's functions as attributes, the layout of a tensor tested. Raises ModelError,
    MissingExtraError."""
    llama.lib("reading llama.cpp's graph")
    return _library()


@cache
def _library() -> Any:
    functions = _Functions()
    problem = self_test(functions)
    if problem:
        raise ModelError(
            f"the ggml inside llama-cpp-python {llama.VERSION} is not the one that ggext knows "
            f"({problem}): "
            f'pip install --force-reinstall "llama-cpp-python=={llama.VERSION}"'
        )
    return functions


class _Functions:
    """Each function of ``_FUNCTIONS``, found in the libraries that llama.cpp has loaded."""

    def __init__(self) -> None:
        module = llama.lib()
        libraries = [module._lib, *_more_libraries(Path(module._base_path))]
        for name, (result, arguments) in _FUNCTIONS.items():
            function = next(
                (lib[name] for lib in libraries if hasattr(lib, name)), None
            )
            if function is None:
                raise ModelError(
                    f"llama-cpp-python {llama.VERSION} has no function {name}: install it again"
                )
            function.restype = result
            function.argtypes = arguments
            setattr(self, name, function)


def _more_libraries(folder: Path) -> Iterator[Any]:
    """On Windows a library's handle does not show the libraries that it needs itself.

    Elsewhere it does, and must be asked: `libggml.so` and the `libggml.so.0` that llama.cpp has
    loaded are two files, and two of them are two registries of devices.
    """
    for path in sorted(folder.glob("*ggml*.dll")) if os.name == "nt" else ():
        with suppress(OSError):
            yield ctypes.CDLL(str(path))


def self_test(functions: Any) -> str:
    """What is wrong with ``Tensor`` for this library, or nothing: a known node is built and read
    back."""
    size = functions.ggml_tensor_overhead() - _OBJECT
    if size != ctypes.sizeof(Tensor):
        return f"a tensor has {size} bytes, not {ctypes.sizeof(Tensor)}"
    call = RopeCall(6, NEOX, 77, 1234.5, 0.25, 0.5, 1.5, 31.0, 2.0, (1.0, 2.0, 4.0))
    with graph_context(functions) as context:
        nodes = rope_nodes(functions, context, call, (3, 2, 8))
        functions.ggml_set_name(nodes[-1], b"the node")
        node, source = (Tensor.from_address(nodes[i]) for i in (-1, 0))
        expected = (
            b"ROPE",
            b"f32",
            [8, 2, 3, 1],
            [4, 32, 64, 192],
            b"the node",
            nodes[:3],
            192,
        )
        read = (
            functions.ggml_op_name(node.op),
            functions.ggml_type_name(node.type),
            list(node.ne),
            list(node.nb),
            node.name,
            list(node.src[:3]),
            functions.ggml_nbytes(nodes[0]),
        )
        if read != expected:
            return f"a ROPE node reads as {read}"
        if (
            call_of(node, call.factors) != call
            or source.op != 0
            or source.view_src
            or source.data
        ):
            return "the parameters of a ROPE node stand elsewhere"
    return ""


def call_of(node: Tensor, factors: tuple[float, ...] | None) -> RopeCall:
    whole = list(node.op_params)
    base, scale, ext, attn, fast, slow = (_float * 16).from_buffer_copy(node.op_params)[
        5:11
    ]
    return RopeCall(
        whole[1], whole[2], whole[4], base, scale, ext, attn, fast, slow, factors
    )


def rope_of(node: Tensor) -> RopeCall:
    """The parameters of a ROPE node, without its factors."""
    return call_of(node, None)


def set_rope(node: Tensor, call: RopeCall) -> None:
    """Has a ROPE node that is not computed yet computed with the scaling of ``call``; which
    dimensions turn, by which base, stays as llama.cpp made it."""
    node.op_params[4] = call.n_ctx_orig
    parameters = (_float * 16).from_buffer(node.op_params)
    parameters[6:11] = [
        call.freq_scale,
        call.ext_factor,
        call.attn_factor,
        call.beta_fast,
        call.beta_slow,
    ]


@contextmanager
def graph_context(functions: Any) -> Iterator[int]:
    """Room for a few tensors and a graph, without their data."""
    size = 8 * functions.ggml_tensor_overhead() + functions.ggml_graph_overhead()
    context = functions.ggml_init(_InitParams(size, None, True))
    if not context:
        raise ModelError("ggml has no memory for a graph of one node")
    try:
        yield context
    finally:
        functions.ggml_free(context)


def rope_nodes(
    functions: Any, context: int, call: RopeCall, shape: tuple[int, int, int]
) -> list[Any]:
    """Addresses of input, positions, factors (or None) and the ROPE node."""
    n_positions, n_heads, dimensions = shape
    pairs = call.n_dims // 2
    if (
        not 0 < call.n_dims <= dimensions
        or call.n_dims % 2
        or call.mode not in (0, NEOX)
    ):  # ggml asserts these
        raise ModelError(
            f"a ROPE of {call.n_dims} of {dimensions} dimensions in mode {call.mode} cannot be "
            "built"
        )
    if call.factors is not None and len(call.factors) != pairs:
        raise ModelError(
            f"a ROPE of {pairs} pairs cannot take {len(call.factors)} frequency factors"
        )
    rows = functions.ggml_new_tensor_3d(context, F32, dimensions, n_heads, n_positions)
    positions = functions.ggml_new_tensor_1d(context, I32, n_positions)
    factors = (
        None
        if call.factors is None
        else functions.ggml_new_tensor_1d(context, F32, pairs)
    )
    node = functions.ggml_rope_ext(
        context,
        rows,
        positions,
        factors,
        call.n_dims,
        call.mode,
        call.n_ctx_orig,
        call.freq_base,
        call.freq_scale,
        call.ext_factor,
        call.attn_factor,
        call.beta_fast,
        call.beta_slow,
    )
    return [rows, positions, factors, node]


def read_tensor(ggml: Any, address: int | None) -> NDArray[Any]:
    """The values of a tensor of up to three axes, from whatever device holds them, in numpy's
    order.

    Raises ModelError for a tensor whose sizes contradict each other, before a byte is read.
    """
    import numpy as np

    if not address:
        raise ModelError("llama.cpp's ROPE node lacks an input")
    tensor = Tensor.from_address(address)
    shape = tuple(reversed(tensor.ne))
    strides = tuple(reversed(tensor.nb))
    name = tensor.name.decode("utf-8", "replace")
    dtype = np.dtype(_DTYPES.get(tensor.type, "V"))
    base = Tensor.from_address(tensor.view_src) if tensor.view_src else tensor
    nbytes = ggml.ggml_nbytes(address)
    reach = (
        sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        + dtype.itemsize
    )
    whole = min(shape) >= 1 and shape[0] == 1 and reach == nbytes <= _LIMIT
    if dtype.kind == "V" or not whole or not base.buffer or not tensor.data:
        raise ModelError(
            f"llama.cpp's tensor {name!r} of type {tensor.type} and shape {shape} cannot be read"
        )
    data = np.empty(nbytes, np.uint8)
    ggml.ggml_backend_tensor_get(address, data.ctypes.data, 0, nbytes)
    view: NDArray[Any] = np.lib.stride_tricks.as_strided(
        data[: dtype.itemsize].view(dtype), shape, strides
    )
    return np.ascontiguousarray(view[0])
