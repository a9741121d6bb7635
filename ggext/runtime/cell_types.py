"""Cells' keys and values as numbers, and back: the types of a cache, and q8_0 in host memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ggext.errors import ModelError
from ggext.native import ValueLostError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggext.native import Dtype

F32, F16, Q8_0, BF16 = 0, 1, 8, 30  # ggml's numbers

#: Types whose values stand for themselves → numpy's, and what ggext.native calls it.
WHOLE: dict[int, tuple[str, Dtype]] = {
    F32: ("<f4", "float32"),
    F16: ("<f2", "float16"),
    BF16: ("<u2", "bfloat16"),
}
_BLOCK, _BLOCK_BYTES = (
    32,
    34,
)  # values of q8_0 that share a float16 scale, and all their bytes


def floats(kind: int, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows of bytes, (n_cells, row bytes), as float32 (n_cells, n_values). Raises ModelError for a
    type that this does not read."""
    import numpy as np

    if kind == Q8_0:
        blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, _BLOCK_BYTES)
        scales = np.ascontiguousarray(blocks[:, :, :2]).view("<f2").astype(np.float32)
        values = blocks[:, :, 2:].view(np.int8) * scales
        return values.reshape(len(rows), -1)
    if kind not in WHOLE:
        raise ModelError(
            f"cells of ggml type {kind} are quantized and cannot be read: use the kv type f16"
        )
    whole: NDArray[Any] = rows.view(WHOLE[kind][0])
    if whole.dtype == np.uint16:
        return (whole.astype(np.uint32) << 16).view(np.float32)
    return whole.astype(np.float32)


def rows_of(kind: int, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`floats` undone, each value rounded once: (n_cells, ...) as rows of bytes. Raises ModelError
    where the type cannot hold a value."""
    import numpy as np

    from ggext.native import convert

    name: Dtype | Literal["q8_0"] = "q8_0" if kind == Q8_0 else WHOLE[kind][1]
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    try:
        data = convert(flat, name)
    except ValueLostError as error:
        raise ModelError(
            f"a cached key or value cannot be kept as {name}: {error}"
        ) from error
    return data.view(np.uint8).reshape(len(values), -1)


def holds_q8_0(width: int) -> bool:
    """Whether a row of so many values divides into the blocks of q8_0."""
    return width % _BLOCK == 0


def row_bytes(kind: int, width: int) -> int:
    """Bytes of a row of so many values."""
    if kind == Q8_0:
        return width // _BLOCK * _BLOCK_BYTES
    return width * (4 if kind == F32 else 2)
