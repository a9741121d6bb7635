"""MLX's quantized matrices: ``weight`` of uint32 with ``scales``, and ``biases`` where the codes
are integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.packed_floats import floats_in_blocks
from ggext.checkpoint.packed_values import (
    FLOAT_DTYPES,
    Decoding,
    Tensors,
    codes_of,
    packing_error,
    to_float32,
)
from ggext.checkpoint.quantized import UNQUANTIZED

if TYPE_CHECKING:
    from ggext.checkpoint.packed_values import Array
    from ggext.checkpoint.safetensors import CheckpointTensor

_BITS = (1, 2, 3, 4, 5, 6, 8)
#: Modes without biases: bits of a float, and how many share a scale.
_FLOATS = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}


def mlx(parts: Tensors, stated: Mapping[str, Any], module: str) -> Decoding | None:
    """MLX's tensors of a module, as what `unpacked` asks of a reader."""
    weight, scale, bias = (parts.get(end) for end in ("weight", "scales", "biases"))
    if (
        weight is None
        or scale is None
        or weight.dtype != "U32"
        or len(weight.shape) < 2
    ):
        return None
    own = stated.get(module)
    settings = own if isinstance(own, Mapping) else stated
    mode = settings.get("mode", "affine")
    if isinstance(mode, str) and mode in _FLOATS and scale.dtype == "U8":
        return floats_in_blocks(weight, scale, *_FLOATS[mode])
    bits = settings.get("bits", 4)
    group = settings.get("group_size", 64)
    if (
        bias is None
        or mode != "affine"
        or bits not in _BITS
        or not isinstance(group, int)
    ):
        raise packing_error(
            weight,
            f"is MLX's {mode!r:.20} of {bits!r:.20} bits; ggext reads affine of 1 to 6 and 8, "
            f"{', '.join(_FLOATS)}",
            UNQUANTIZED,
        )
    return _affine(weight, scale, bias, bits, group)


def _affine(
    weight: CheckpointTensor,
    scale: CheckpointTensor,
    bias: CheckpointTensor,
    bits: int,
    group: int,
) -> Decoding:
    shape = (*weight.shape[:-1], weight.shape[-1] * 32 // bits)
    fitting = (*shape[:-1], shape[-1] // max(group, 1))
    if any(t.shape != fitting or t.dtype not in FLOAT_DTYPES for t in (scale, bias)):
        raise packing_error(
            scale,
            f"has the shape {list(scale.shape)}; {list(shape)} has groups of {group}",
        )

    def make(rows: Any) -> Array:
        import numpy as np

        def flat(tensor: CheckpointTensor) -> Array:
            values: Array = tensor.array().reshape(-1, tensor.shape[-1])[rows]
            return values

        codes = codes_of(flat(weight), bits).astype("<f4")
        scales, biases = (
            np.repeat(to_float32(flat(tensor), tensor.dtype), group, axis=-1)
            for tensor in (scale, bias)
        )
        values: Array = codes * scales + biases
        return values

    return shape, make
