"""Checkpoints whose weights are packed integers or 4-bit floats with scales next to them: read as
the floats that they stand for.

Of each module the tensors' own names, types and shapes say how it is packed:

- compressed-tensors: ``weight_packed``, ``weight_scale``, ``weight_shape`` (integers of 4 or 8
  bits, the zero points packed along the rows), ``weight`` of int8 with ``weight_scale``, and NVFP4
  and MXFP4 under ``weight_packed``;
- ModelOpt: NVFP4 in ``weight`` with ``weight_scale`` and ``weight_scale_2``;
- GPTQ: ``qweight`` (packed along the inputs), ``qzeros``, ``scales``, ``g_idx``;
- AWQ: ``qweight`` (packed along the outputs, interleaved), ``qzeros``, ``scales``;
- MLX: ``weight`` of uint32, ``scales``, ``biases``.

A value is computed in float32 and rounded once, to the type that the configuration states for the
weights: what the libraries' own half-precision kernels give is within one unit of its last place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from ggext.checkpoint.float8_codes import float8_values
from ggext.checkpoint.lazy_rows import BYTES, LazyRows
from ggext.checkpoint.packed_values import (
    FLOAT_DTYPES,
    Tensors,
    codes_of,
    floats_of,
    groups_of_columns,
    packing_error,
    read_group_index,
    spread_over_rows,
    to_float32,
)
from ggext.checkpoint.safetensors import CheckpointTensor

if TYPE_CHECKING:
    from ggext.checkpoint.packed_values import Array


#: Of a module's tensors by ending, whether they are packed so, and how its values are made.
_Found = tuple[tuple[int, ...], Callable[[Any], "Array"]]
_ENDS = (
    "weight weight_packed weight_scale weight_shape weight_zero_point weight_g_idx weight_scale_2 "
    "weight_global_scale qweight qzeros scales biases g_idx"
).split()
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where column i stands among the eight of a word
#: E2M1 (OCP Microscaling formats): the eight magnitudes, and their negatives.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


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
        found = next(
            filter(None, (read(parts, stated, module) for read in _READERS)), None
        )
        if found is None:
            continue
        shape, make = found
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


def _compressed(
    parts: Tensors, stated: Mapping[str, Any], module: str
) -> _Found | None:
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
    per_word = next((n for n in (8, 4) if packed.shape == (rows, -(-columns // n))), 0)
    if not per_word:
        raise packing_error(
            packed,
            f"has the shape {list(packed.shape)}, which {list(size)} does not pack to",
        )
    bits = 32 // per_word
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


def _int8(parts: Tensors, stated: Mapping[str, Any], module: str) -> _Found | None:
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
    if "weight_zero_point" in parts:
        raise packing_error(
            parts["weight_zero_point"], "is a zero point of int8, which is not read"
        )
    groups = groups_of_columns(scale, None, weight.shape)

    def make(rows: Any) -> Array:
        values: Array = (
            weight.array()[rows].astype("<f4")
            * spread_over_rows(scale, rows)[:, groups]
        )
        return values

    return weight.shape, make


def _fp4(parts: Tensors, stated: Mapping[str, Any], module: str) -> _Found | None:
    """NVFP4 (blocks of 16, a float8 scale each and one of all) and MXFP4 (blocks of 32, a power of
    two each)."""
    del stated, module
    packed = parts.get("weight_packed") or parts.get("weight")
    scale = parts.get("weight_scale")
    if packed is None or scale is None or packed.dtype != "U8" or len(packed.shape) < 2:
        return None
    shape = (*packed.shape[:-1], 2 * packed.shape[-1])
    whole = parts.get("weight_scale_2") or parts.get("weight_global_scale")
    block = 32 if scale.dtype in ("U8", "F8_E8M0") else 16
    if scale.shape != (*shape[:-1], shape[-1] // block) or shape[-1] % block:
        raise packing_error(
            scale,
            f"has the shape {list(scale.shape)}; {list(shape)} has blocks of {block}",
        )
    if block == 16 and (scale.dtype != "F8_E4M3" or whole is None):
        raise packing_error(
            scale, f"is {scale.dtype} without a scale of the whole matrix, not NVFP4's"
        )
    factor = _factor(whole, "weight_global_scale" in parts)

    def make(rows: Any) -> Array:
        import numpy as np

        flat = packed.array().reshape(-1, packed.shape[-1])[rows]
        table = np.array([*_FP4, *(-value for value in _FP4)], "<f4")
        stored = scale.array().reshape(-1, scale.shape[-1])[rows]
        if block == 32:
            scales = np.ldexp(np.float32(1), stored.astype("<i4") - 127)
        else:
            scales = float8_values("F8_E4M3")[stored] * factor
        values: Array = table[codes_of(flat, 4)] * np.repeat(scales, block, axis=-1)
        return values

    return shape, make


def _factor(whole: CheckpointTensor | None, divides: bool) -> Any:
    """NVFP4's scale of the whole matrix; compressed-tensors keeps what it is divided by."""
    if whole is None:
        return 1.0
    values = floats_of(whole).reshape(-1)
    if len(values) != 1 or not values[0]:
        raise packing_error(whole, "must be one number above 0")
    return 1 / values[0] if divides else values[0]


def _gptq(parts: Tensors, stated: Mapping[str, Any], module: str) -> _Found | None:
    del module
    found = _words_zeros_and_scales(parts)
    if found is None or found[0].shape[1] != found[2].shape[1]:
        return None
    weight, zeros, scale = found
    bits = stated.get("bits", 4)
    per_word = 32 // bits if bits in (2, 4, 8) else 0
    outputs = scale.shape[1]
    n_groups = scale.shape[0]
    if not per_word or zeros.shape != (n_groups, -(-outputs // per_word)):
        raise packing_error(
            weight,
            f"is GPTQ of {bits!r} bits, of which ggext reads 2, 4 and 8 as packed by it",
        )
    inputs = weight.shape[0] * per_word
    groups = read_group_index(parts.get("g_idx"), inputs, n_groups)
    # the older form keeps a zero point less 1
    less = 0 if stated.get("checkpoint_format") == "gptq_v2" else 1

    def make(rows: Any) -> Array:
        import numpy as np

        chosen = np.arange(outputs)[rows]
        span = slice(int(chosen.min()), int(chosen.max()) + 1)
        codes = codes_of(weight.array()[:, span].swapaxes(0, 1), bits)[
            chosen - span.start
        ]
        first = span.start // per_word
        last = -(-span.stop // per_word)
        offsets = codes_of(zeros.array()[:, first:last], bits)[
            :, chosen - first * per_word
        ]
        scales = to_float32(scale.array()[:, chosen], scale.dtype)
        values: Array = (codes - (offsets.astype("<f4") + less)[groups].T) * scales[
            groups
        ].T
        return values

    return (outputs, inputs), make


def _words_zeros_and_scales(
    parts: Tensors,
) -> tuple[CheckpointTensor, CheckpointTensor, CheckpointTensor] | None:
    """GPTQ's and AWQ's three matrices, ``None`` where they are not there."""
    weight, zeros, scale = (parts.get(end) for end in ("qweight", "qzeros", "scales"))
    if weight is None or zeros is None or scale is None:
        return None
    for tensor, dtypes in (
        (weight, ("I32",)),
        (zeros, ("I32",)),
        (scale, FLOAT_DTYPES),
    ):
        if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.dtype not in dtypes:
            raise packing_error(
                tensor, f"is {tensor.dtype} {list(tensor.shape)}, not a packed matrix's"
            )
    return weight, zeros, scale


def _awq(parts: Tensors, stated: Mapping[str, Any], module: str) -> _Found | None:
    del module
    found = _words_zeros_and_scales(parts)
    if found is None or found[0].shape[1] * 8 != found[2].shape[1]:
        return None
    weight, zeros, scale = found
    inputs, words = weight.shape
    n_groups, outputs = scale.shape
    version = str(stated.get("version", "gemm")).lower()
    if zeros.shape != (n_groups, words) or inputs % n_groups or version != "gemm":
        raise packing_error(
            weight,
            f"is AWQ {version} {list(weight.shape)} with zero points {list(zeros.shape)}, "
            "which is not the form gemm",
        )

    def make(rows: Any) -> Array:
        import numpy as np

        chosen = np.arange(outputs)[rows]
        first = int(chosen.min()) // 8
        last = int(chosen.max()) // 8 + 1
        place = chosen // 8 * 8 + np.array(_AWQ_ORDER)[chosen % 8] - 8 * first
        codes = codes_of(weight.array()[:, first:last], 4)[:, place].astype("<f4")
        offsets = codes_of(zeros.array()[:, first:last], 4)[:, place].astype("<f4")
        scales = to_float32(scale.array()[:, chosen], scale.dtype)
        each = inputs // n_groups
        values: Array = (
            (codes - np.repeat(offsets, each, 0)) * np.repeat(scales, each, 0)
        ).T
        return values

    return (outputs, inputs), make


def _mlx(parts: Tensors, stated: Mapping[str, Any], module: str) -> _Found | None:
    weight, scale, bias = (parts.get(end) for end in ("weight", "scales", "biases"))
    if (
        weight is None
        or scale is None
        or weight.dtype != "U32"
        or len(weight.shape) < 2
    ):
        return None
    own = stated.get(module)
    said = own if isinstance(own, Mapping) else stated
    bits = said.get("bits", 4)
    group = said.get("group_size", 64)
    mode = said.get("mode", "affine")
    if (
        bias is None
        or mode != "affine"
        or bits not in (2, 4, 8)
        or not isinstance(group, int)
    ):
        raise packing_error(
            weight,
            f"is MLX's {mode!r} of {bits!r} bits; ggext reads affine of 2, 4 and 8",
        )
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


_READERS = (_compressed, _int8, _fp4, _gptq, _awq, _mlx)
