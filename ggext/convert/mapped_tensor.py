"""Tensors of a checkpoint in the order, the shape and the type in which they are written."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.safetensors import CheckpointTensor, bfloat16_values
from ggext.errors import CheckpointError
from ggext.gguf.types import BF16, F16, F32, I32, MXFP4, aligned

if TYPE_CHECKING:
    import numpy as np

    from ggext.converters.base import TensorRule


GGML_TYPE = {"F64": F32, "F32": F32, "F16": F16, "BF16": BF16}
#: dtypes of whole numbers.
INTEGERS = ("I64", "I32")
#: Rows that are read for each row that is chosen: half of two interleaved tensors is 2, a permuted
#: head 1.
_LARGEST_SPAN = 4
_MOST_BYTES = 8  # of a value, as it is stored


def ggml_mxfp4(
    blocks: np.ndarray[Any, Any], exponents: np.ndarray[Any, Any]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Rows of MXFP4 as ggml packs them: of 32 values the exponent, then 16 bytes with value i
    next to value i + 16.

    ``blocks``: uint8 (rows, blocks, 16), each byte two neighbours, the first in its lower half;
    ``exponents``: uint8 (rows, blocks). The result is (rows, blocks · 17).
    """
    import numpy as np

    values = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(
        *blocks.shape[:-1], 32
    )
    packed = values[..., :16] | values[..., 16:] << 4
    return np.concatenate([exponents[..., None], packed], axis=-1).reshape(
        len(blocks), -1
    )


@dataclass(frozen=True)
class RowBlock:
    """Some rows of a tensor, in writing order."""

    # Rows, or values of a one-dimensional tensor.
    n_rows: int
    # Values in all.
    n_values: int
    # Gives them, in any thread.
    read: Callable[[], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class MappedTensor:
    """Tensors of a checkpoint in the order and the shape in which they are written, under their
    GGUF name.

    ``tensors`` are all of one shape, but for MXFP4's blocks and exponents; where they are of
    several dtypes, all become float32, which holds the values of each. ``shape`` in PyTorch order.
    """

    name: str
    tensors: tuple[CheckpointTensor, ...]
    rule: TensorRule

    @property
    def dtype(self) -> str:
        """As safetensors spells it; F32 for what is computed, MXFP4 for what is packed as ggml
        packs it."""
        if self.rule.scales:
            return "MXFP4"
        computed = self.rule.plus or self.rule.computed is not None
        return "F32" if computed or self.is_mixed else self.tensors[0].dtype

    @property
    def is_mixed(self) -> bool:
        """Whether the sources have several dtypes."""
        return (
            not self.rule.scales and len({tensor.dtype for tensor in self.tensors}) > 1
        )

    @property
    def type(self) -> int:
        """The ggml type that holds the values without loss."""
        if self.rule.below:
            return I32
        return MXFP4 if self.rule.scales else GGML_TYPE[self.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        rule = self.rule
        if rule.written is not None:
            return rule.written
        shape = _rearranged(rule)
        return (len(self.tensors), *shape) if len(self.tensors) > 1 else shape

    def stored(self) -> list[tuple[Path, int, int]]:
        """Where the bytes to write stand, one after the other, as (file, first byte, bytes);
        nothing where they are to be made."""
        rule = self.rule
        made = (
            rule.rows
            or rule.columns
            or rule.transposed
            or rule.plus
            or rule.computed
            or rule.arranged
            or self.is_mixed
            or rule.scales
            or rule.below
            or self.tensors[0].dtype == "F64"
        )
        if made or not all(tensor.is_stored for tensor in self.tensors):
            return []
        return [(tensor.path, tensor.start, tensor.nbytes) for tensor in self.tensors]

    def blocks(self, nbytes: int) -> Iterator[RowBlock]:
        """Whole rows in writing order, about ``nbytes`` at a time: two-dimensional (one-dimensional
        where the tensor is); bfloat16 as its uint16 bits, MXFP4 as ggml's bytes."""
        if self.rule.arranged is not None:
            yield from self._arranged_blocks(nbytes)
            return
        if self.rule.scales:
            yield from self._packed_blocks(nbytes)
            return
        shape = _rearranged(self.rule)
        row_length = shape[-1] if len(shape) > 1 else 1
        n_all = math.prod(shape) // row_length
        n_rows = n_all if self.rule.rows is None else len(self.rule.rows())
        row_bytes = self.tensors[0].nbytes * row_length // math.prod(shape)
        step = rows_at_once(nbytes, row_bytes, row_length)
        for tensor in self.tensors:
            for start in range(0, n_rows, step):
                stop = min(n_rows, start + step)
                yield RowBlock(
                    stop - start,
                    (stop - start) * row_length,
                    partial(self._read, tensor, start, stop),
                )

    def _packed_blocks(self, nbytes: int) -> Iterator[RowBlock]:
        """MXFP4 of several matrices, one after the other."""
        count = len(self.rule.sources)
        *_, n_rows, row_length = self.shape
        step = rows_at_once(nbytes, row_length, row_length)
        for codes, scales in zip(
            self.tensors[:count], self.tensors[count:], strict=True
        ):
            for start in range(0, n_rows, step):
                rows = slice(start, min(n_rows, start + step))
                n_values = (rows.stop - start) * row_length
                read = partial(_packed_rows, codes, scales, rows)
                yield RowBlock(rows.stop - start, n_values, read)

    def _arranged_blocks(self, nbytes: int) -> Iterator[RowBlock]:
        """Of two or more dimensions; no block has rows of two matrices."""
        *matrices, n_rows, row_length = self.shape
        step = rows_at_once(nbytes, row_length * _MOST_BYTES, row_length)
        starts = range(0, n_rows, step)
        assert self.rule.arranged is not None
        wholes = _Wholes(
            self.tensors, self.rule.arranged, math.prod(matrices) * len(starts)
        )
        for matrix in range(math.prod(matrices)):
            for start in starts:
                rows = slice(start, min(n_rows, start + step))
                place = (matrix, rows) if matrices else (rows,)
                count = rows.stop - start
                read = partial(self._read_arranged, wholes, place)
                yield RowBlock(count, count * row_length, read)

    def _read_arranged(
        self, wholes: _Wholes, place: tuple[int | slice, ...]
    ) -> np.ndarray[Any, Any]:
        first, *others = (whole[place] for whole in wholes.taken())
        return ggml_mxfp4(first, *others) if self.rule.scales else first

    def _read(
        self, tensor: CheckpointTensor, start: int, stop: int
    ) -> np.ndarray[Any, Any]:
        rule = self.rule
        block = _rows(tensor, rule, start, stop)
        if rule.below:
            return _whole_numbers(tensor, block, rule.below)
        if rule.columns is not None:
            block = block[:, rule.columns()]
        if not rule.plus and rule.computed is None and not self.is_mixed:
            return block
        values = (
            bfloat16_values(block) if tensor.dtype == "BF16" else block.astype("<f4")
        )
        if rule.computed is not None:
            return rule.computed(values)
        return values + values.dtype.type(rule.plus) if rule.plus else values


class _Wholes:
    """Arranged views of a tensor's sources: made for its first block, since values of float8 are
    computed all together, and let go with its last, so that no file stays mapped."""

    def __init__(
        self,
        tensors: Sequence[CheckpointTensor],
        arranged: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
        blocks: int,
    ) -> None:
        self._tensors = tensors
        self._arranged = arranged
        self._remaining = blocks
        self._lock = threading.Lock()
        self._values: list[np.ndarray[Any, Any]] | None = None

    def taken(self) -> list[np.ndarray[Any, Any]]:
        """For one block, in any thread."""
        with self._lock:
            values = self._values or [
                self._arranged(tensor.array()) for tensor in self._tensors
            ]
            self._remaining -= 1
            self._values = values if self._remaining > 0 else None
            return values


def _packed_rows(
    codes: CheckpointTensor, scales: CheckpointTensor, rows: slice
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    blocks = codes.array()[rows].view("u1")
    exponents = scales.array()[rows].view("u1")
    return ggml_mxfp4(blocks.reshape(len(blocks), -1, 16), exponents)


def _whole_numbers(
    tensor: CheckpointTensor, values: np.ndarray[Any, Any], below: int
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """As int32. Raises ``CheckpointError`` for one that is not from 0 to below that."""
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < below:
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name} has numbers of {int(values.min())} to "
            f"{int(values.max())}; they must be from 0 to {below - 1}: download it again"
        )
    return values.astype("<i4")


def rows_at_once(nbytes: int, row_bytes: int, row_length: int) -> int:
    """How many rows to take together: about ``nbytes``, and whole blocks of 32 values even where a
    row is none."""
    return aligned(max(1, nbytes // row_bytes), 32 // math.gcd(32, row_length))


def _rearranged(rule: TensorRule) -> tuple[int, ...]:
    """The shape of one source before its rows are chosen."""
    shape = rule.shape
    if rule.transposed:
        shape = (*shape[:-2], shape[-1], shape[-2])
    return rule.view or shape


def _rows(
    tensor: CheckpointTensor, rule: TensorRule, start: int, stop: int
) -> np.ndarray[Any, Any]:
    """Rows [start, stop) in writing order. Chosen ones come out of the span that holds them, if
    that is not much larger."""
    shape = _rearranged(rule)
    row = shape[-1:] if len(shape) > 1 else ()
    n = math.prod(row)
    if tensor.is_stored and not rule.transposed:
        if rule.rows is None:
            return tensor.values(start * n, stop * n).reshape(-1, *row)
        chosen = rule.rows()[start:stop]
        first = int(chosen.min())
        end = int(chosen.max()) + 1
        if end - first <= _LARGEST_SPAN * len(chosen):
            return tensor.values(first * n, end * n).reshape(-1, *row)[chosen - first]
    values = tensor.array()
    values = (values.swapaxes(-1, -2) if rule.transposed else values).reshape(-1, *row)
    return values[start:stop] if rule.rows is None else values[rule.rows()[start:stop]]
