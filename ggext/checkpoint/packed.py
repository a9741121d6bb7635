"""Checkpoints whose weights are packed integers or small floats with scales next to them: read as
the floats that they stand for.

Of each module the tensors' own names, types and shapes say how it is packed:

- compressed-tensors: ``weight_packed``, ``weight_scale``, ``weight_shape`` (integers of 1 to
  8 bits, the zero points packed along the rows), ``weight`` of int8 with ``weight_scale``, NVFP4,
  MXFP4 and MXFP6 under ``weight_packed``, and MXFP8 in ``weight``;
- ModelOpt: NVFP4 in ``weight`` with ``weight_scale`` and ``weight_scale_2``;
- GPTQ, and AutoRound's like it: ``qweight`` (packed along the inputs), ``qzeros``, ``scales``,
  ``g_idx``;
- AWQ: ``qweight``, ``qzeros``, ``scales``, in three layouts;
- MLX: ``weight`` of uint32, ``scales``, ``biases``.

A value is computed in float32 and rounded once, to the type that the configuration states for the
weights: what the libraries' own half-precision kernels give is within one unit of its last place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from ggext.checkpoint import packed_awq
from ggext.checkpoint.lazy_rows import BYTES, LazyRows
from ggext.checkpoint.packed_floats import block_floats
from ggext.checkpoint.packed_gptq import packed_inputs
from ggext.checkpoint.packed_integers import byte_integers, packed_integers
from ggext.checkpoint.packed_mlx import mlx
from ggext.checkpoint.packed_values import Tensors
from ggext.checkpoint.safetensors import CheckpointTensor

if TYPE_CHECKING:
    from ggext.checkpoint.packed_values import Array


_ENDS = (
    "weight weight_packed weight_scale weight_shape weight_zero_point weight_g_idx weight_scale_2 "
    "weight_global_scale qweight qzeros scaled_zeros scales biases g_idx"
).split()


@dataclass(frozen=True)
class PackedTensor(CheckpointTensor):
    """``make``: rows by index → float32."""

    make: Callable[[Any], Array] = field(repr=False, compare=False)

    def array(self) -> Array:
        return cast("Array", LazyRows(self.shape, self.dtype, self.make))


def unpacked(
    tensors: dict[str, CheckpointTensor], stated: Mapping[str, Any], dtype: str
) -> dict[str, CheckpointTensor]:
    """``tensors`` with each packed weight as floats of ``dtype``, and without what belongs to it;
    others stay. ``stated``: what config.json says of the quantization.

    Raises ``CheckpointError`` where the tensors of a module do not fit each other."""
    result = dict(tensors)
    for module in _modules(tensors):
        parts = {
            end: tensors[f"{module}.{end}"]
            for end in _ENDS
            if f"{module}.{end}" in tensors
        }
        decoding = next(
            filter(None, (read(parts, stated, module) for read in _READERS)), None
        )
        if decoding is None:
            continue
        shape, make = decoding
        for part in parts.values():
            del result[part.name]
        first = next(iter(parts.values()))
        nbytes = BYTES[dtype]
        for size in shape:
            nbytes *= size
        name = f"{module}.weight"
        result[name] = PackedTensor(
            name, dtype, shape, first.path, first.start, nbytes, make
        )
    return result


def _modules(tensors: Tensors) -> list[str]:
    """The names that stand before a scale's."""
    ends = (".weight_scale", ".scales")
    return [
        name.removesuffix(end) for name in tensors for end in ends if name.endswith(end)
    ]


_READERS = (
    packed_integers,
    byte_integers,
    block_floats,
    packed_awq.gemv,
    packed_inputs,
    packed_awq.gemm,
    packed_awq.gemv_fast,
    mlx,
)
