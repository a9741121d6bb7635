"""What a child process does to try a llama.cpp library: small products with each of its kernels.

A kernel that the processor cannot execute ends the process, so `ggext.runtime.kernels` starts
`main` in a child and reads what it says. A message comes before what it announces: ``["load"]``;
``["try", buffer type, tensor type]``; ``["ok", buffer type, tensor type, microseconds, off]``
for each product, how far it is off the plain kernel's; at the end ``["done"]``.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggext.runtime.channel import Channel

#: ggml's tensor types that have matrix kernels of their own on some processor (``enum ggml_type``).
TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
    "BF16": 30,
    "MXFP4": 39,
}
_CPU = 0  # enum ggml_backend_dev_type
_BUFFER = 8  # bytes before the field `buffer` of struct ggml_tensor

_void = ctypes.c_void_p
_int = ctypes.c_int
_size = ctypes.c_size_t
_text = ctypes.c_char_p
_bool = ctypes.c_bool
_long = ctypes.c_int64


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _size), ("mem_buffer", _void), ("no_alloc", _bool))


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (_void, [_InitParams]),
    "ggml_free": (None, [_void]),
    "ggml_tensor_overhead": (_size, []),
    "ggml_graph_overhead": (_size, []),
    "ggml_nbytes": (_size, [_void]),
    "ggml_new_tensor_2d": (_void, [_void, _int, _long, _long]),
    "ggml_mul_mat": (_void, [_void, _void, _void]),
    "ggml_new_graph": (_void, [_void]),
    "ggml_build_forward_expand": (None, [_void, _void]),
    "ggml_quantize_chunk": (_size, [_int, _void, _void, _long, _long, _long, _void]),
    "ggml_backend_dev_by_type": (_void, [_int]),
    "ggml_backend_dev_init": (_void, [_void, _text]),
    "ggml_backend_dev_backend_reg": (_void, [_void]),
    "ggml_backend_dev_buffer_type": (_void, [_void]),
    "ggml_backend_dev_supports_op": (_bool, [_void, _void]),
    "ggml_backend_reg_get_proc_address": (_void, [_void, _text]),
    "ggml_backend_buft_name": (_text, [_void]),
    "ggml_backend_buft_alloc_buffer": (_void, [_void, _size]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_void, [_void, _void]),
    "ggml_backend_buffer_free": (None, [_void]),
    "ggml_backend_tensor_set": (None, [_void, _void, _size, _size]),
    "ggml_backend_tensor_get": (None, [_void, _void, _size, _size]),
    "ggml_backend_graph_compute": (_int, [_void, _void]),
}


def load(path: str) -> Any:
    """The functions of ggml, through the library that will be used."""
    if sys.platform == "win32":
        os.add_dll_directory(os.path.dirname(path))
    library = ctypes.CDLL(path)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


class Products:
    """Products of matrices of ``rows`` × ``columns`` on the CPU."""

    def __init__(self, ggml: Any, rows: int, columns: int, repeats: int) -> None:
        self.ggml = ggml
        self.rows = rows
        self.columns = columns
        self.repeats = repeats
        self.device = ggml.ggml_backend_dev_by_type(_CPU)
        self.backend = ggml.ggml_backend_dev_init(self.device, None)
        set_threads = self._procedure(
            b"ggml_backend_set_n_threads", ctypes.CFUNCTYPE(None, _void, _int)
        )
        if set_threads:
            set_threads(self.backend, 1)
        self.weights = _numbers(rows * columns, 263)

    def _procedure(self, name: bytes, kind: Any) -> Any:
        registry = self.ggml.ggml_backend_dev_backend_reg(self.device)
        address = self.ggml.ggml_backend_reg_get_proc_address(registry, name)
        return kind(address) if address else None

    def buffer_types(self) -> Iterator[tuple[str, Any]]:
        """The plain buffer type, then those whose weights are laid out for special kernels."""
        plain = self.ggml.ggml_backend_dev_buffer_type(self.device)
        yield self._name(plain), plain
        extra = self._procedure(
            b"ggml_backend_dev_get_extra_bufts",
            ctypes.CFUNCTYPE(ctypes.POINTER(_void), _void),
        )
        listed = extra(self.device) if extra else None
        index = 0
        while listed and listed[index]:
            yield self._name(listed[index]), listed[index]
            index += 1

    def _name(self, buffer_type: Any) -> str:
        return str(self.ggml.ggml_backend_buft_name(buffer_type).decode())

    def multiply(
        self, tensor_type: int, buffer_type: Any, batch: int
    ) -> tuple[array[float], float] | None:
        """The product with ``batch`` columns and its microseconds; None without such a kernel."""
        ggml = self.ggml
        size = 8 * ggml.ggml_tensor_overhead() + ggml.ggml_graph_overhead()
        stored = ggml.ggml_init(_InitParams(size, None, True))
        computed = ggml.ggml_init(_InitParams(size, None, True))
        weights = ggml.ggml_new_tensor_2d(stored, tensor_type, self.columns, self.rows)
        inputs = ggml.ggml_new_tensor_2d(computed, 0, self.columns, batch)
        product = ggml.ggml_mul_mat(computed, weights, inputs)
        if not self._supported(weights, product, buffer_type):
            return None
        buffers = (
            ggml.ggml_backend_alloc_ctx_tensors_from_buft(stored, buffer_type),
            ggml.ggml_backend_alloc_ctx_tensors_from_buft(
                computed, ggml.ggml_backend_dev_buffer_type(self.device)
            ),
        )
        if not all(buffers):
            raise MemoryError("ggml has no memory for a small matrix")
        self._fill(weights, tensor_type)
        _set(ggml, inputs, _numbers(self.columns * batch, 269))
        graph = ggml.ggml_new_graph(computed)
        ggml.ggml_build_forward_expand(graph, product)
        best = math.inf
        for _ in range(self.repeats):
            start = time.perf_counter()
            if ggml.ggml_backend_graph_compute(self.backend, graph) != 0:
                raise RuntimeError("ggml refused to compute a product")
            best = min(best, time.perf_counter() - start)
        result = array("f", bytes(4 * self.rows * batch))
        address, length = result.buffer_info()
        ggml.ggml_backend_tensor_get(product, address, 0, 4 * length)
        for buffer in buffers:
            ggml.ggml_backend_buffer_free(buffer)
        ggml.ggml_free(stored)
        ggml.ggml_free(computed)
        return result, 1e6 * best

    def _supported(self, weights: int, product: int, buffer_type: Any) -> bool:
        """Asked as llama.cpp asks: with the weights in an empty buffer of that type."""
        field = ctypes.c_void_p.from_address(weights + _BUFFER)
        empty = self.ggml.ggml_backend_buft_alloc_buffer(buffer_type, 0)
        field.value = empty
        supported = bool(self.ggml.ggml_backend_dev_supports_op(self.device, product))
        field.value = None
        if empty:
            self.ggml.ggml_backend_buffer_free(empty)
        return supported

    def _fill(self, tensor: int, tensor_type: int) -> None:
        """Writes the weights into a tensor, in its type."""
        if tensor_type == TYPES["F32"]:
            _set(self.ggml, tensor, self.weights)
            return
        size = self.ggml.ggml_nbytes(tensor)
        quantized = ctypes.create_string_buffer(size)
        source, _ = self.weights.buffer_info()
        self.ggml.ggml_quantize_chunk(
            tensor_type, source, quantized, 0, self.rows, self.columns, None
        )
        self.ggml.ggml_backend_tensor_set(tensor, quantized, 0, size)


def _numbers(count: int, period: int) -> array[float]:
    """Between -1 and 1, without a pattern that a row's length could divide."""
    cycle = array("f", (math.sin(1.0 + i * i) for i in range(period)))
    return (cycle * (count // period + 1))[:count]


def _set(ggml: Any, tensor: int, values: array[float]) -> None:
    address, length = values.buffer_info()
    ggml.ggml_backend_tensor_set(tensor, address, 0, 4 * length)


def _difference(product: array[float], expected: array[float]) -> float:
    """The root mean square of the difference, relative to that of what was expected."""
    pairs = list(zip(product, expected, strict=True))
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs) / sum(b * b for _, b in pairs))


def main(channel: Channel) -> None:
    """The child: receives what to try (`kernels.Sizes` and the library), says what it does."""
    request = channel.receive()
    if request is None:
        return
    _no_core_file()
    channel.send(["load"])
    ggml = load(request["library"])
    products = Products(ggml, request["rows"], request["columns"], request["repeats"])
    plain: dict[tuple[str, int], array[float]] = {}
    for buffer_name, buffer_type in products.buffer_types():
        if buffer_name in request["left_out"]:
            continue
        for name, number in TYPES.items():
            channel.send(["try", buffer_name, name])
            for batch in request["batches"]:
                result = products.multiply(number, buffer_type, batch)
                if result is not None:
                    off = _difference(
                        result[0], plain.setdefault((name, batch), result[0])
                    )
                    channel.send(["ok", buffer_name, name, result[1], off])
    channel.send(["done"])


def _no_core_file() -> None:
    """A death that is expected leaves no file behind."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(
        resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1])
    )
