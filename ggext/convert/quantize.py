"""Tensor values from the type they have to the type that is written, piece by piece, in the native
extension.

f32, f16, bf16 and q8_0 are made here; everything else is llama.cpp's own quantizer's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ggext.checkpoint.safetensors import bfloat16_values
from ggext.convert.fold import Rounding, scale_bytes, scale_values
from ggext.convert.mapped_tensor import RowBlock
from ggext.convert.model_source import SourceTensor
from ggext.errors import CheckpointError, GgufError
from ggext.gguf.pieces import Piece, stored_pieces
from ggext.gguf.types import BF16, F16, F32, Q8_0, tensor_nbytes, type_name
from ggext.gguf.writer import TensorToWrite

if TYPE_CHECKING:
    import numpy as np

    _Values = np.ndarray[Any, Any]
    _Scale = np.ndarray[Any, np.dtype[np.float64]]

_NATIVE_NAMES: dict[int, Literal["float32", "float16", "bfloat16", "q8_0"]] = {
    F32: "float32",
    F16: "float16",
    BF16: "bfloat16",
    Q8_0: "q8_0",
}


def to_write(tensor: SourceTensor, kind: int, rounding: Rounding) -> TensorToWrite:
    """``rounding`` counts what scaled rows lose, where the file that they came from had them
    already rounded."""
    if kind != tensor.type and kind not in _NATIVE_NAMES:
        raise GgufError(
            f"tensor {tensor.name} cannot become {type_name(kind)} here; llama.cpp's quantizer "
            "makes that"
        )
    nbytes = tensor_nbytes(tensor.name, tensor.shape, kind)
    n_values = math.prod(tensor.shape)
    stored = tensor.stored() if kind == tensor.type else []
    if stored:
        return TensorToWrite(
            tensor.name,
            tensor.shape,
            kind,
            nbytes,
            lambda: (p for place in stored for p in stored_pieces(*place)),
        )

    def pieces() -> Iterator[Piece]:
        row = 0
        for block in tensor.blocks():
            scale = (
                None
                if tensor.row_scale is None
                else tensor.row_scale[row : row + block.n_rows]
            )
            row += block.n_rows
            yield Piece(
                nbytes * block.n_values // n_values,
                partial(_bytes, block, tensor, kind, scale, rounding),
            )

    return TensorToWrite(tensor.name, tensor.shape, kind, nbytes, pieces)


def _bytes(
    block: RowBlock,
    tensor: SourceTensor,
    kind: int,
    scale: _Scale | None,
    rounding: Rounding,
) -> memoryview:
    import numpy as np

    rows = block.read()
    held = tensor.type
    if scale is not None and tensor.is_gguf and kind == held:
        rows = scale_bytes(
            rows.view("u1").reshape(len(rows), -1), kind, scale, rounding
        )
    elif scale is not None:
        rows = scale_values(_float32(rows, held), scale)
        held = F32
    elif rows.dtype == np.float64:
        rows = _float32(rows, held)
    values = np.ascontiguousarray(rows).reshape(-1)
    return (
        (values if held == kind else _converted(values, held, kind, tensor))
        .view("u1")
        .data
    )


def _converted(values: _Values, held: int, kind: int, tensor: SourceTensor) -> _Values:
    from ggext import native

    dtype: Literal["bfloat16"] | None = "bfloat16" if held == BF16 else None
    try:
        return native.convert(values, _NATIVE_NAMES[kind], dtype=dtype)
    except native.ValueLostError as error:
        raise CheckpointError(
            f"{tensor.place} has the value {error.value:g}, which {_NATIVE_NAMES[kind]} cannot "
            "hold; "
            "choose type='bf16' or type='f32'"
        ) from None


def _float32(rows: _Values, held: int) -> _Values:
    return bfloat16_values(rows) if held == BF16 else rows.astype("<f4")
