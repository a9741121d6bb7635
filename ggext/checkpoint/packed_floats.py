"""Small floats in blocks that share a scale: NVFP4, MXFP4, MXFP6 and MXFP8, as compressed-tensors,
ModelOpt and MLX keep them (OCP Microscaling formats, and NVIDIA's E4M3 scales)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.float8_codes import float8_values
from ggext.checkpoint.packed_values import (
    Decoding,
    Tensors,
    codes_of,
    floats_of,
    packing_error,
)

if TYPE_CHECKING:
    from ggext.checkpoint.packed_values import Array
    from ggext.checkpoint.safetensors import CheckpointTensor

_NV_BLOCK = 16
_MX_BLOCK = 32
_BITS = {"U8": 8, "F8_E4M3": 8, "U32": 32}
_POWERS = ("U8", "F8_E8M0")  # the types of a scale that is a power of two


def block_floats(
    parts: Tensors, stated: Mapping[str, Any], module: str
) -> Decoding | None:
    """``weight_packed`` or ``weight`` of a module, as what `unpacked` asks of a reader: NVFP4 has
    blocks of 16, a float8 scale each and one of all; MX blocks of 32, a power of two each."""
    del stated, module
    packed = parts.get("weight_packed") or parts.get("weight")
    scale = parts.get("weight_scale")
    if packed is None or scale is None or len(packed.shape) < 2:
        return None
    if packed.dtype == "F8_E4M3" and scale.dtype in _POWERS:
        return floats_in_blocks(packed, scale, 8, _MX_BLOCK)
    if packed.dtype != "U8":
        return None
    whole = parts.get("weight_scale_2") or parts.get("weight_global_scale")
    if scale.dtype in _POWERS:
        bits = 6 if packed.shape[-1] == 24 * scale.shape[-1] else 4
        return floats_in_blocks(packed, scale, bits, _MX_BLOCK)
    if scale.dtype != "F8_E4M3" or whole is None:
        raise packing_error(
            scale, f"is {scale.dtype} without a scale of the whole matrix, not NVFP4's"
        )
    factor = _factor(whole, "weight_global_scale" in parts)
    return floats_in_blocks(packed, scale, 4, _NV_BLOCK, factor)


def floats_in_blocks(
    packed: CheckpointTensor,
    scale: CheckpointTensor,
    bits: int,
    block: int,
    factor: float = 1.0,
) -> Decoding:
    """The floats of ``bits`` bits in the last dimension of ``packed``, times their block's scale
    and ``factor``. Scales of blocks of 16 are E4M3, of others E8M0. Raises CheckpointError."""
    n_bits = packed.shape[-1] * _BITS[packed.dtype]
    shape = (*packed.shape[:-1], n_bits // bits)
    if shape[-1] % block or scale.shape != (*shape[:-1], shape[-1] // block):
        raise packing_error(
            scale,
            f"has the shape {list(scale.shape)}; {list(shape)} has blocks of {block}",
        )
    table = _values(bits)

    def make(rows: Any) -> Array:
        import numpy as np

        codes = codes_of(packed.array().reshape(-1, packed.shape[-1])[rows], bits)
        stored = scale.array().reshape(-1, scale.shape[-1])[rows]
        if block == _NV_BLOCK:
            scales = float8_values("F8_E4M3")[stored] * factor
        else:
            scales = np.ldexp(np.float32(1), stored.astype("<i4") - 127)
        values: Array = table[codes] * np.repeat(scales, block, axis=-1)
        return values

    return shape, make


def _values(bits: int) -> Array:
    """The values of E2M1, E2M3 and E4M3 by their codes."""
    import numpy as np

    if bits == 8:
        return float8_values("F8_E4M3")
    mantissas = {4: 1, 6: 3}[bits]
    codes = np.arange(1 << (bits - 1))
    exponent = codes >> mantissas
    fraction = (codes & (1 << mantissas) - 1) / (1 << mantissas)
    magnitude = np.where(exponent, (1 + fraction) * 2.0 ** (exponent - 1), fraction)
    return np.concatenate([magnitude, -magnitude]).astype("<f4")


def _factor(whole: CheckpointTensor, divides: bool) -> float:
    """NVFP4's scale of the whole matrix; compressed-tensors keeps what it is divided by."""
    values = floats_of(whole).reshape(-1)
    if len(values) != 1 or not values[0]:
        raise packing_error(whole, "must be one number above 0")
    return float(1 / values[0]) if divides else float(values[0])
