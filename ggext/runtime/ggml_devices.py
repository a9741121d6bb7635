"""ggml's devices, and its ROPE operation on each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggext.errors import ModelError
from ggext.runtime.ggml import RopeCall, graph_context, library, read_tensor, rope_nodes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_CPU = 0  # enum ggml_backend_dev_type


@dataclass(frozen=True)
class Device:
    """A device that ggml found. ``is_cpu``: its angles are those that `proof.float32` derives."""

    name: str
    description: str
    is_cpu: bool
    handle: int


def devices() -> list[Device]:
    """Every device of the installed ggml, the CPU among them."""
    ggml = library()
    result = []
    for index in range(ggml.ggml_backend_dev_count()):
        handle = ggml.ggml_backend_dev_get(index)
        name = ggml.ggml_backend_dev_name(handle)
        description = ggml.ggml_backend_dev_description(handle)
        kind = ggml.ggml_backend_dev_type(handle)
        result.append(
            Device(
                name.decode(),
                description.decode("utf-8", "replace"),
                kind == _CPU,
                handle,
            )
        )
    return result


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
    with graph_context(ggml) as context:
        source, places, factors, node = rope_nodes(ggml, context, call, rows.shape)
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
