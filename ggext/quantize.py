"""Tensor values from the type they have to the type that is written.

f32, f16, bf16 and q8_0 are made here, piece by piece; everything else is llama.cpp's own quantizer's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ggext.errors import CheckpointError, GgufError, UsageError
from ggext.fold import Rounding, scale_bytes, scale_values
from ggext.gguf.types import BF16, F16, F32, MXFP4, Q8_0, tensor_nbytes, type_name
from ggext.gguf.writer import TensorToWrite
from ggext.mapped import MappedTensor, bfloat16_values
from ggext.sources import SourceTensor

if TYPE_CHECKING:
    import numpy as np

TYPES = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": Q8_0}
#: ggml type of most weights → general.file_type.
FILE_TYPES = {F32: 0, F16: 1, Q8_0: 7, BF16: 32, MXFP4: 38}
_Q8_0_BLOCK = 32
_FLOAT32_NAMES = (".bias", "_norm.weight", "ffn_gate_inp.weight", "shortconv.conv.weight")


def is_llama_cpp_type(name: str, is_gguf: bool) -> bool:
    """Whether llama.cpp's quantizer makes it: K-quants, and every change of a file that is GGUF already."""
    return name != "auto" and (is_gguf or name not in TYPES)


def check_llama_cpp_type(name: str, tensors: list[SourceTensor]) -> None:
    """Raise ``UsageError`` for a type that llama.cpp's quantizer would not make of these tensors."""
    from ggext.runtime.llama import quantization_names

    names = quantization_names()
    if name.upper() not in names:
        known = ", ".join(["auto", *TYPES, *(n for n in names if n.lower() not in TYPES)])
        raise UsageError(f"--type {name} is unknown; known: {known}")
    quantized = {t.type for t in tensors} - {F32, F16, BF16}
    if quantized:
        kinds = ", ".join(sorted(type_name(kind) for kind in quantized))
        raise UsageError(
            f"--type {name}: the file is quantized already ({kinds}) and would lose more; "
            "start from the checkpoint or an f16 file, or leave --type out"
        )


def planned_type(tensor: SourceTensor, wanted: str, notes: list[str]) -> int:
    """The ggml type to write. MXFP4 stays; norms, biases and routers are float32, as llama.cpp's kernels expect."""
    if not isinstance(tensor.origin, MappedTensor):
        return tensor.type
    if tensor.type == MXFP4:
        return MXFP4
    if len(tensor.shape) == 1 or tensor.name.endswith(_FLOAT32_NAMES):
        return F32
    if wanted == "auto":
        return tensor.type
    kind = TYPES[wanted]
    if kind == Q8_0 and tensor.shape[0] % _Q8_0_BLOCK:
        notes.append(
            f"{tensor.name} has rows of {tensor.shape[0]} values, not whole blocks of {_Q8_0_BLOCK}: written as f16"
        )
        return F16
    return kind


def to_write(tensor: SourceTensor, kind: int, rounding: Rounding) -> TensorToWrite:
    """``rounding`` counts what scaled rows lose, where the file that they came from had them already rounded."""

    def chunks() -> Iterator[memoryview]:
        row = 0
        for block in tensor.blocks():
            scale = None if tensor.row_scale is None else tensor.row_scale[row : row + len(block)]
            row += len(block)
            yield _converted(block, tensor, kind, scale, rounding).reshape(-1).view("u1").data

    nbytes = tensor_nbytes(tensor.name, tensor.shape, kind)
    return TensorToWrite(tensor.name, tensor.shape, kind, nbytes, chunks)


def _converted(
    block: np.ndarray[Any, Any],
    tensor: SourceTensor,
    kind: int,
    scale: np.ndarray[Any, np.dtype[np.float64]] | None,
    rounding: Rounding,
) -> np.ndarray[Any, Any]:
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    if not isinstance(tensor.origin, MappedTensor):
        if kind != tensor.type:
            raise GgufError(f"tensor {tensor.name}: a GGUF tensor keeps its type")
        return block if scale is None else scale_bytes(block, kind, scale, rounding)
    if scale is None and kind == tensor.type and tensor.origin.dtype != "F64":
        return np.ascontiguousarray(block)
    values = _float32(block, tensor)
    if scale is not None:
        values = scale_values(values, scale)
    if kind == F32:
        return values
    if kind == F16:
        with np.errstate(over="ignore"):
            halves = values.astype("<f2")
        if np.isinf(halves).any() and not np.isinf(values).any():
            stored = tensor.origin.tensors[0]
            raise CheckpointError(
                f"{stored.path}: tensor {stored.name} has the value {np.abs(values).max():g}, which float16 cannot "
                "hold; choose --type bf16 or f32"
            )
        return halves
    flat = values if values.ndim > 1 else values[None, :]
    return np.ascontiguousarray(quantize(np.ascontiguousarray(flat), GGMLQuantizationType(kind)))


def _float32(block: np.ndarray[Any, Any], tensor: SourceTensor) -> np.ndarray[Any, Any]:
    import numpy as np

    if tensor.type == BF16:
        return bfloat16_values(block)
    return np.ascontiguousarray(block, dtype="<f4")
