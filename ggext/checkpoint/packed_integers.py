"""compressed-tensors' integers: packed in words next to their shape, or bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.packed_values import (
    Decoding,
    Tensors,
    codes_of,
    groups_of_columns,
    packing_error,
    spread_over_rows,
)

if TYPE_CHECKING:
    from ggext.checkpoint.packed_values import Array
    from ggext.checkpoint.safetensors import CheckpointTensor


def packed_integers(
    parts: Tensors, stated: Mapping[str, Any], module: str
) -> Decoding | None:
    """``weight_packed`` of a module, as what `unpacked` asks of a reader."""
    del stated, module
    packed, scale, shape = (
        parts.get(f"weight_{end}") for end in ("packed", "scale", "shape")
    )
    if packed is None or scale is None or shape is None or packed.dtype != "I32":
        return None
    whole = shape.dtype in ("I64", "I32") and len(shape.shape) == 1
    size = tuple(int(n) for n in shape.array()[:2]) if whole else ()
    if len(size) != 2 or min(size) < 1 or len(packed.shape) != 2:
        raise packing_error(shape, f"says the shape {list(size)}, not that of a matrix")
    rows, columns = size
    # A dense stream of bits, so that the width of a row tells how many a code has.
    fitting = (n for n in range(1, 9) if packed.shape == (rows, -(-columns * n // 32)))
    bits = next(fitting, 0)
    if not bits:
        raise packing_error(
            packed,
            f"has the shape {list(packed.shape)}, which {list(size)} does not pack to",
        )
    zeros = parts.get("weight_zero_point")
    groups = groups_of_columns(scale, parts.get("weight_g_idx"), size)
    return size, _of_integers(packed, scale, zeros, groups, bits, columns)


def _of_integers(
    packed: CheckpointTensor,
    scale: CheckpointTensor,
    zeros: CheckpointTensor | None,
    groups: Array,
    bits: int,
    columns: int,
) -> Callable[[Any], Array]:
    """Integers around zero, stored with half their range added."""
    half = 1 << (bits - 1)

    def make(rows: Any) -> Array:
        codes = codes_of(packed.array()[rows], bits)[:, :columns].astype("<f4") - half
        if zeros is not None:
            by_row = codes_of(zeros.array().swapaxes(0, 1), bits).swapaxes(0, 1)
            offsets = by_row[: packed.shape[0]][rows].astype("<f4") - half
            codes -= offsets[:, groups]
        values: Array = codes * spread_over_rows(scale, rows)[:, groups]
        return values

    if zeros is not None and zeros.dtype != "I32":
        raise packing_error(zeros, f"is {zeros.dtype}; zero points are packed in I32")
    if zeros is not None and zeros.shape != (
        -(-packed.shape[0] * bits // 32),
        scale.shape[1],
    ):
        raise packing_error(
            zeros, f"has the shape {list(zeros.shape)}, which its scale does not fit"
        )
    return make


def byte_integers(
    parts: Tensors, stated: Mapping[str, Any], module: str
) -> Decoding | None:
    """``weight`` of int8 of a module, as what `unpacked` asks of a reader."""
    del stated, module
    weight = parts.get("weight")
    scale = parts.get("weight_scale")
    if (
        weight is None
        or scale is None
        or weight.dtype != "I8"
        or len(weight.shape) != 2
    ):
        return None
    zeros = parts.get("weight_zero_point")
    if zeros is not None and (zeros.dtype != "I8" or zeros.shape != scale.shape):
        raise packing_error(
            zeros,
            f"is {zeros.dtype} {list(zeros.shape)}; zero points of int8 are I8 "
            f"{list(scale.shape)}",
        )
    groups = groups_of_columns(scale, None, weight.shape)

    def make(rows: Any) -> Array:
        codes = weight.array()[rows].astype("<f4")
        if zeros is not None:
            offsets = zeros.array().reshape(zeros.shape[0], -1)
            of_rows = offsets if len(offsets) == 1 else offsets[rows]
            codes -= of_rows.astype("<f4")[:, groups]
        values: Array = codes * spread_over_rows(scale, rows)[:, groups]
        return values

    return weight.shape, make
