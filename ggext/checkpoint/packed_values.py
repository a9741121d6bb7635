"""What the formats of packed weights share: codes out of words, groups, scales, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.safetensors import CheckpointTensor, bfloat16_values
from ggext.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


#: What a reader of `ggext.checkpoint.packed` finds of a module: the shape of its matrix, and from
#: an index of rows to their values in float32.
Decoding = tuple[tuple[int, ...], Callable[[Any], "Array"]]
Tensors = Mapping[str, CheckpointTensor]
FLOAT_DTYPES = ("F32", "BF16", "F16")


def codes_of(words: Array, bits: int) -> Array:
    """The codes of ``bits`` bits (1 to 8) in the words of the last dimension: one stream of bits,
    the lowest of the first word first, so that a code may lie in two words. uint8; more than were
    packed where the words have bits to spare."""
    import numpy as np

    stored = np.ascontiguousarray(words).view("u1")
    if bits == 8:
        return stored
    n_bytes = math.lcm(bits, 8) // 8
    if missing := -stored.shape[-1] % n_bytes:
        no_more = [(0, 0)] * (stored.ndim - 1)
        stored = np.pad(stored, [*no_more, (0, missing)])
    packs = stored.reshape(*stored.shape[:-1], -1, n_bytes)
    whole = np.zeros(packs.shape[:-1], "<u8")
    for i in range(n_bytes):
        whole |= packs[..., i].astype("<u8") << np.uint64(8 * i)
    codes = np.empty((*whole.shape, 8 * n_bytes // bits), "u1")
    for i in range(codes.shape[-1]):
        codes[..., i] = whole >> np.uint64(bits * i) & np.uint64((1 << bits) - 1)
    return codes.reshape(*whole.shape[:-1], -1)


def groups_of_columns(
    scale: CheckpointTensor, index: CheckpointTensor | None, shape: tuple[int, ...]
) -> Array:
    """For each column the one of its scale."""
    rows, columns = shape
    size = scale.shape if len(scale.shape) == 2 else (scale.shape or (1,)) + (1,)
    if (
        scale.dtype not in FLOAT_DTYPES
        or size[0] not in (1, rows)
        or not 0 < size[1] <= columns
    ):
        raise packing_error(
            scale, f"is {scale.dtype} {list(scale.shape)}, no scale of {list(shape)}"
        )
    return read_group_index(index, columns, size[1])


def read_group_index(
    index: CheckpointTensor | None, count: int, n_groups: int
) -> Array:
    """For each of ``count`` inputs its group. An index that is all -1 was never set."""
    import numpy as np

    if index is not None:
        groups: Array = index.array().reshape(-1).astype("<i8")
        if len(groups) != count or groups.max() >= n_groups:
            raise packing_error(
                index, f"is no index of {count} inputs in {n_groups} groups"
            )
        if groups.min() >= 0:
            return groups
    each = -(-count // n_groups)
    return np.arange(count) // each


def spread_over_rows(scale: CheckpointTensor, rows: Any) -> Array:
    """The scales of the rows, one row of them where all rows share it."""
    n_rows = scale.shape[0] if scale.shape else 1
    stored = scale.array().reshape(n_rows, -1)
    chosen_rows = stored if len(stored) == 1 else stored[rows]
    return to_float32(chosen_rows, scale.dtype)


def floats_of(tensor: CheckpointTensor) -> Array:
    if tensor.dtype not in FLOAT_DTYPES:
        raise packing_error(
            tensor, f"is {tensor.dtype}; a scale is one of {', '.join(FLOAT_DTYPES)}"
        )
    return to_float32(tensor.array(), tensor.dtype)


def to_float32(values: Array, dtype: str) -> Array:
    return bfloat16_values(values) if dtype == "BF16" else values.astype("<f4")


def packing_error(
    tensor: CheckpointTensor, what: str, remedy: str = "download it again"
) -> CheckpointError:
    return CheckpointError(f"{tensor.path}: tensor {tensor.name} {what}; {remedy}")
