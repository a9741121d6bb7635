"""GPTQ's integers: packed along the inputs, with an index of each input's group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.packed_values import (
    FLOAT_DTYPES,
    Decoding,
    Tensors,
    codes_of,
    packing_error,
    read_group_index,
    to_float32,
)

if TYPE_CHECKING:
    from ggext.checkpoint.packed_values import Array
    from ggext.checkpoint.safetensors import CheckpointTensor


def packed_inputs(
    parts: Tensors, stated: Mapping[str, Any], module: str
) -> Decoding | None:
    """GPTQ's tensors of a module, as what `unpacked` asks of a reader."""
    del module
    tensors = words_zeros_and_scales(parts)
    if tensors is None or tensors[0].shape[1] != tensors[2].shape[1]:
        return None
    weight, zeros, scale = tensors
    n_groups, outputs = scale.shape
    bits = _bits(zeros, scale, stated.get("bits"))
    if not bits or weight.shape[0] * 32 % bits:
        raise packing_error(
            weight,
            f"is GPTQ {list(weight.shape)} with zero points {list(zeros.shape)} for "
            f"scales {list(scale.shape)}, which are no codes of 2 to 8 bits",
        )
    inputs = weight.shape[0] * 32 // bits
    groups = read_group_index(parts.get("g_idx"), inputs, n_groups)
    less = int(_zeros_are_less_one(stated))
    return (outputs, inputs), _of_codes(weight, zeros, scale, groups, bits, less)


def _of_codes(
    weight: CheckpointTensor,
    zeros: CheckpointTensor,
    scale: CheckpointTensor,
    groups: Array,
    bits: int,
    less: int,
) -> Callable[[Any], Array]:
    """``less``: what the stored zero points lack."""
    n_codes, n_words = _unit(bits)
    outputs = scale.shape[1]

    def make(rows: Any) -> Array:
        import numpy as np

        chosen = np.arange(outputs)[rows]
        span = slice(int(chosen.min()), int(chosen.max()) + 1)
        by_output = weight.array()[:, span].swapaxes(0, 1)
        codes = codes_of(by_output, bits)[chosen - span.start]
        first = span.start // n_codes
        last = -(-span.stop // n_codes)
        words = zeros.array()[:, first * n_words : last * n_words]
        offsets = codes_of(words, bits)[:, chosen - first * n_codes].astype("<f4")
        scales = to_float32(scale.array()[:, chosen], scale.dtype)
        values: Array = (codes - (offsets + less)[groups].T) * scales[groups].T
        return values

    return make


def _unit(bits: int) -> tuple[int, int]:
    """The fewest codes that end with a word, and their words."""
    whole = math.lcm(bits, 32)
    return whole // bits, whole // 32


def _bits(zeros: CheckpointTensor, scale: CheckpointTensor, stated: Any) -> int:
    """How many bits a code has, by the width of the zero points: a module may have others than the
    rest. 0: none fits. ``stated`` decides where several do."""
    n_groups, outputs = scale.shape

    def fits(bits: Any) -> bool:
        n_codes, n_words = _unit(bits)
        return zeros.shape == (n_groups, -(-outputs // n_codes) * n_words)

    fitting = [bits for bits in range(2, 9) if fits(bits)]
    return stated if stated in fitting else next(iter(fitting), 0)


def _zeros_are_less_one(stated: Mapping[str, Any]) -> bool:
    """Whether zero points are stored less 1: in GPTQ's first form, and in AutoRound's that is like
    it; AutoRound's own (of integers that are not symmetric) has them as they are."""
    form = stated.get("checkpoint_format") or stated.get("format")
    packing = str(stated.get("packing_format", ""))
    if packing.startswith("auto_round"):
        return "gptq" in packing and "gptqmodel" not in packing
    return form != "gptq_v2"


def words_zeros_and_scales(
    parts: Tensors,
) -> tuple[CheckpointTensor, CheckpointTensor, CheckpointTensor] | None:
    """The matrices that GPTQ and AWQ share, ``None`` where they are not there."""
    weight, zeros, scale = (parts.get(end) for end in ("qweight", "qzeros", "scales"))
    if weight is None or zeros is None or scale is None or weight.dtype != "I32":
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
