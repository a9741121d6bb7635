"""ggml under llama.cpp: its devices, its ROPE operation by itself, and the ROPE nodes of a live
graph.

Nothing of this is in llama-cpp-python's interface: functions and the layout of ``struct
ggml_tensor`` are declared here, for the one version that ``ggext.runtime.llama`` accepts.
``library`` builds a known ROPE node and reads it back before anything else is read, so other bytes
are a ModelError, not a crash.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.runtime import llama

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

F32, F16, I32 = 0, 1, 26  # enum ggml_type
_DTYPES = {F32: "<f4", F16: "<f2", I32: "<i4"}
_CPU = 0  # enum ggml_backend_dev_type
NEOX = 2  # GGML_ROPE_TYPE_NEOX; 0 turns adjacent dimensions
#: GGML_ROPE_TYPE_MROPE and, with more bits, IMROPE: pairs as in NEOX, four positions a token.
MROPE = 8
_OBJECT = 32  # bytes of struct ggml_object in front of a tensor
_LIMIT = 1 << 31  # bytes of a tensor that are read at once

_void, _int, _float, _size = (
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_float,
    ctypes.c_size_t,
)


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


#: Place among a ROPE node's parameters of its first rotated dimension (ggml_rope_set_offset).
_OFFSET = 15


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


@dataclass(frozen=True)
class RopeNode:
    """A ROPE node that was computed."""

    name: str
    source: str
    call: RopeCall
    # For a context shift the distance of each cache cell.
    positions: NDArray[np.int64]
    # (n_positions, n_heads, dimensions), from the first rotated dimension of a head on; where
    # attention is latent the last ones rotate.
    before: NDArray[np.float32]
    # Of the same shape.
    after: NDArray[np.float32]


@dataclass(frozen=True)
class Device:
    """A device that ggml found. ``is_cpu``: its angles are those that `proof.float32` derives."""

    name: str
    description: str
    is_cpu: bool
    handle: int


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
            function.restype, function.argtypes = result, arguments
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
    with _context(functions) as context:
        nodes = _rope_nodes(functions, context, call, (3, 2, 8))
        functions.ggml_set_name(nodes[-1], b"the node")
        node, source = (Tensor.from_address(nodes[i]) for i in (-1, 0))
        wanted = (
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
        if read != wanted:
            return f"a ROPE node reads as {read}"
        if (
            _call_of(node, call.factors) != call
            or source.op != 0
            or source.view_src
            or source.data
        ):
            return "the parameters of a ROPE node stand elsewhere"
    return ""


def _call_of(node: Tensor, factors: tuple[float, ...] | None) -> RopeCall:
    whole = list(node.op_params)
    base, scale, ext, attn, fast, slow = (_float * 16).from_buffer_copy(node.op_params)[
        5:11
    ]
    return RopeCall(
        whole[1], whole[2], whole[4], base, scale, ext, attn, fast, slow, factors
    )


def rope_of(node: Tensor) -> RopeCall:
    """The parameters of a ROPE node, without its factors."""
    return _call_of(node, None)


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
def _context(functions: Any) -> Iterator[int]:
    """Room for a few tensors and a graph, without their data."""
    size = 8 * functions.ggml_tensor_overhead() + functions.ggml_graph_overhead()
    context = functions.ggml_init(_InitParams(size, None, True))
    if not context:
        raise ModelError("ggml has no memory for a graph of one node")
    try:
        yield context
    finally:
        functions.ggml_free(context)


def _rope_nodes(
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


def devices() -> list[Device]:
    """Every device of the installed ggml, the CPU among them."""
    ggml = library()
    found = []
    for index in range(ggml.ggml_backend_dev_count()):
        handle = ggml.ggml_backend_dev_get(index)
        name, description = (
            ggml.ggml_backend_dev_name(handle),
            ggml.ggml_backend_dev_description(handle),
        )
        kind = ggml.ggml_backend_dev_type(handle)
        found.append(
            Device(
                name.decode(),
                description.decode("utf-8", "replace"),
                kind == _CPU,
                handle,
            )
        )
    return found


def rope_on(
    device: Device,
    call: RopeCall,
    rows: NDArray[np.float32],
    positions: NDArray[np.integer[Any]],
) -> NDArray[np.float32] | None:
    """ggml's ROPE of ``rows`` (n_positions, n_heads, dimensions) on a device; None where it has
    none."""
    import numpy as np

    if rows.ndim != 3 or rows.dtype != np.float32 or positions.shape != rows.shape[:1]:
        raise ModelError(
            f"ROPE rows of shape {rows.shape} do not fit {positions.shape} positions"
        )
    ggml = library()
    with _context(ggml) as context:
        source, places, factors, node = _rope_nodes(ggml, context, call, rows.shape)
        if not ggml.ggml_backend_dev_supports_op(device.handle, node):
            return None
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, node)
        with _backend(ggml, device, context) as backend:
            _write(ggml, source, np.ascontiguousarray(rows))
            _write(ggml, places, positions.astype(np.int32))
            if factors is not None:
                _write(ggml, factors, np.array(call.factors, np.float32))
            status = ggml.ggml_backend_graph_compute(backend, graph)
            if status != 0:
                raise ModelError(
                    f"ggml's ROPE on {device.name} ended with status {status}"
                )
            return read_tensor(ggml, node)


@contextmanager
def _backend(ggml: Any, device: Device, context: int) -> Iterator[int]:
    backend = ggml.ggml_backend_dev_init(device.handle, None)
    if not backend:
        raise ModelError(f"ggml's device {device.name} does not start")
    try:
        buffer = ggml.ggml_backend_alloc_ctx_tensors(context, backend)
        if not buffer:
            raise ModelError(
                f"ggml's device {device.name} has no memory for one operation"
            )
        try:
            yield backend
        finally:
            ggml.ggml_backend_buffer_free(buffer)
    finally:
        ggml.ggml_backend_free(backend)


def _write(ggml: Any, address: int, values: NDArray[Any]) -> None:
    if ggml.ggml_nbytes(address) != values.nbytes:
        raise ModelError(
            f"{values.nbytes} bytes for a tensor of {ggml.ggml_nbytes(address)}"
        )
    ggml.ggml_backend_tensor_set(address, values.ctypes.data, 0, values.nbytes)


def read_tensor(ggml: Any, address: int | None) -> NDArray[Any]:
    """The values of a tensor of up to three axes, from whatever device holds them, in numpy's
    order.

    Raises ModelError for a tensor whose sizes contradict each other, before a byte is read.
    """
    import numpy as np

    if not address:
        raise ModelError("llama.cpp's ROPE node lacks an input")
    tensor = Tensor.from_address(address)
    shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
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


class RopeWatcher:
    """Gives every ROPE node of the graphs that a context computes to ``sink``, in the order of
    computing.

    ``callback`` is for ``SessionOptions.eval_callback`` and must live as long as the context. It
    asks for every node, so each is computed by itself: an operation's input may lie where its
    output will be written, and a backend may fuse it with others. After a decode call ``check``.
    """

    def __init__(self, sink: Callable[[RopeNode], None]) -> None:
        self._ggml = library()
        self._sink = sink
        self._before: tuple[int, NDArray[Any]] | None = None
        self.error: BaseException | None = None
        self.callback = llama.lib().ggml_backend_sched_eval_callback(self._see)

    def check(self) -> None:
        """Raises what went wrong inside the callback."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def _see(self, address: int, ask: bool, _user_data: object) -> bool:
        if self.error is not None:
            return False
        try:
            self._look(address, ask)
        except BaseException as error:  # noqa: BLE001 - `check` raises it; ctypes would only print it
            self.error = error
        return self.error is None

    def _look(self, address: int, ask: bool) -> None:
        node = Tensor.from_address(address)
        if self._ggml.ggml_op_name(node.op) != b"ROPE":
            return
        if ask:
            self._before = address, read_tensor(self._ggml, node.src[0])
            return
        if self._before is None or self._before[0] != address:
            raise ModelError("llama.cpp computed a ROPE node without asking first")
        before, self._before = self._before[1], None
        self._sink(self._node(node, before, read_tensor(self._ggml, address)))

    def _node(
        self, node: Tensor, before: NDArray[Any], after: NDArray[Any]
    ) -> RopeNode:
        import numpy as np

        source = Tensor.from_address(node.src[0])
        positions = read_tensor(self._ggml, node.src[1]).ravel().astype(np.int64)
        factors = (
            tuple(read_tensor(self._ggml, node.src[2]).ravel().tolist())
            if node.src[2]
            else None
        )
        if factors is not None:  # there may be more, for layers that rotate more
            factors = factors[: max(0, rope_of(node).n_dims) // 2]
        name, origin = (t.name.decode("utf-8", "replace") for t in (node, source))
        call = _call_of(node, factors)
        first = node.op_params[_OFFSET]
        rotated_fit = first >= 0 and 0 < call.n_dims <= after.shape[-1] - first
        if (
            before.shape != after.shape
            or len(positions) < len(after)
            or not rotated_fit
        ):
            raise ModelError(
                f"llama.cpp's ROPE node {name!r} has shapes that contradict each other"
            )
        rows = (
            before[..., first:].astype(np.float32),
            after[..., first:].astype(np.float32),
        )
        return RopeNode(name, origin, call, positions[: len(after)], *rows)
