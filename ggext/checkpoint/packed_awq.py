"""AWQ's integers of 4 bits in the layouts of AutoAWQ: gemm (packed along the outputs), gemv (along
the inputs) and gemv_fast (four outputs interleaved)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.packed_gptq import words_zeros_and_scales
from ggext.checkpoint.packed_values import (
    FLOAT_DTYPES,
    Decoding,
    Tensors,
    codes_of,
    packing_error,
    to_float32,
)

if TYPE_CHECKING:
    from ggext.checkpoint.packed_values import Array
    from ggext.checkpoint.safetensors import CheckpointTensor

_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where column i stands among the eight of a word
_FAST_ROWS, _FAST_COLUMNS = 4, 64  # what gemv_fast interleaves


def gemm(parts: Tensors, stated: Mapping[str, Any], module: str) -> Decoding | None:
    """Tensors of a module in the layout gemm, as what `unpacked` asks of a reader."""
    del module
    tensors = words_zeros_and_scales(parts)
    if tensors is None or tensors[0].shape[1] * 8 != tensors[2].shape[1]:
        return None
    weight, zeros, scale = tensors
    inputs, words = weight.shape
    n_groups, outputs = scale.shape
    if zeros.shape != (n_groups, words) or inputs % n_groups:
        raise packing_error(
            weight,
            f"is AWQ {_version(stated)} {list(weight.shape)} with zero points "
            f"{list(zeros.shape)}, which is not the form gemm",
        )

    def make(rows: Any) -> Array:
        import numpy as np

        chosen = np.arange(outputs)[rows]
        first = int(chosen.min()) // 8
        last = int(chosen.max()) // 8 + 1
        place = chosen // 8 * 8 + np.array(_ORDER)[chosen % 8] - 8 * first
        codes = codes_of(weight.array()[:, first:last], 4)[:, place].astype("<f4")
        offsets = codes_of(zeros.array()[:, first:last], 4)[:, place].astype("<f4")
        scales = to_float32(scale.array()[:, chosen], scale.dtype)
        each = inputs // n_groups
        values: Array = (
            (codes - np.repeat(offsets, each, 0)) * np.repeat(scales, each, 0)
        ).T
        return values

    return (outputs, inputs), make


def gemv(parts: Tensors, stated: Mapping[str, Any], module: str) -> Decoding | None:
    """The same for gemv, whose three tensors all have a row for each output; scales and zero
    points have room for more groups than there are."""
    del module
    tensors = words_zeros_and_scales(parts)
    if tensors is None or len({tensor.shape[0] for tensor in tensors}) > 1:
        return None
    weight, zeros, scale = tensors
    outputs, words = weight.shape
    inputs = 8 * words
    each, n_groups = _groups(stated, inputs, weight)
    if scale.shape[1] != 8 * zeros.shape[1] or n_groups > scale.shape[1]:
        raise packing_error(
            weight,
            f"is AWQ gemv {list(weight.shape)} with zero points {list(zeros.shape)} and "
            f"scales {list(scale.shape)}, which do not fit groups of {each}",
        )

    def make(rows: Any) -> Array:
        import numpy as np

        codes = codes_of(weight.array()[rows], 4).astype("<f4")
        offsets = codes_of(zeros.array()[rows], 4)[:, :n_groups].astype("<f4")
        scales = to_float32(scale.array()[rows][:, :n_groups], scale.dtype)
        values: Array = (codes - np.repeat(offsets, each, 1)) * np.repeat(
            scales, each, 1
        )
        return values

    return (outputs, inputs), make


def gemv_fast(
    parts: Tensors, stated: Mapping[str, Any], module: str
) -> Decoding | None:
    """The same for gemv_fast: words of 16 bits, and for each group and output a scale and what is
    added, minus zero point · scale. llm-awq's own files have it under another name."""
    del module
    weight = parts.get("qweight")
    added = parts.get("scaled_zeros") or parts.get("qzeros")
    scale = parts.get("scales")
    if weight is None or added is None or scale is None or weight.dtype != "I16":
        return None
    outputs = scale.shape[-1] if scale.shape else 0
    inputs = weight.shape[-1] if weight.shape else 0
    each, n_groups = _groups(stated, inputs, weight)
    if (
        weight.shape != (outputs // _FAST_ROWS, inputs)
        or not outputs
        or outputs % _FAST_ROWS
        or inputs % _FAST_COLUMNS
        or len(scale.shape) != 2
        or added.shape != scale.shape
        or n_groups > scale.shape[0]
        or {scale.dtype, added.dtype} - {*FLOAT_DTYPES}
    ):
        raise packing_error(
            weight,
            f"is AWQ gemv_fast {list(weight.shape)} with scales {list(scale.shape)} and "
            f"scaled zero points {list(added.shape)}, which do not fit groups of {each}",
        )

    def make(rows: Any) -> Array:
        import numpy as np

        chosen = np.arange(outputs)[rows]
        codes = _rows_of_four(weight, chosen, inputs).astype("<f4")
        scales, zeros = (
            np.repeat(to_float32(t.array()[:n_groups, chosen], t.dtype), each, 0).T
            for t in (scale, added)
        )
        values: Array = codes * scales + zeros
        return values

    return (outputs, inputs), make


def _rows_of_four(weight: CheckpointTensor, chosen: Array, inputs: int) -> Array:
    """The codes of gemv_fast's rows, uint8 (rows, inputs). Four rows stand together, 64 columns of
    each after the other; among 32 columns 0, 8, 16, 24, 1, 9, … are the places of pairs."""
    import numpy as np

    first = int(chosen.min()) // _FAST_ROWS
    last = int(chosen.max()) // _FAST_ROWS + 1
    codes = codes_of(weight.array()[first:last], 4)
    blocks = codes.reshape(len(codes), -1, _FAST_ROWS, _FAST_COLUMNS).swapaxes(1, 2)
    stored = blocks.reshape(-1, inputs // 32, 32)[chosen - first * _FAST_ROWS]
    # A column is 8 · eight + 2 · pair + odd, and stands at 8 · pair + 4 · odd + eight.
    column = np.arange(32).reshape(4, 4, 2).transpose(1, 2, 0).reshape(-1)
    ordered = np.empty_like(stored)
    ordered[..., column] = stored
    result: Array = ordered.reshape(len(chosen), inputs)
    return result


def _groups(
    stated: Mapping[str, Any], inputs: int, weight: CheckpointTensor
) -> tuple[int, int]:
    """How many inputs share a scale, and how many groups these are."""
    size = stated.get("group_size", stated.get("q_group_size", 128))
    if size == -1:
        size = inputs
    if not isinstance(size, int) or size < 1 or inputs % size:
        raise packing_error(
            weight,
            f"is AWQ {_version(stated)} {list(weight.shape)} in groups of {size!r:.20}, "
            f"which do not divide {inputs} inputs",
        )
    return size, inputs // size


def _version(stated: Mapping[str, Any]) -> str:
    return str(stated.get("version", stated.get("format", "gemm"))).lower()[:20]
