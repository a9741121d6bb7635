"""What ``convert`` reads: a model's tensors, its metadata, its RoPE, and notes on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.safetensors import read_values
from ggext.convert.inputs import Inputs
from ggext.convert.mapped_tensor import MappedTensor, RowBlock, rows_at_once
from ggext.gguf.reader import GgufFile
from ggext.gguf.rope import still_pairs_of
from ggext.gguf.types import BF16, F16, F32, Field, TensorInfo
from ggext.rope.capabilities import unrotated
from ggext.rope.keys import (
    FACTOR_TENSORS,
)
from ggext.rope.scaling import RopeGeometry, RopeScaling

if TYPE_CHECKING:
    import numpy as np


#: What is read at once: no more than a second-level cache, so that the values are still there to be
#: converted and written. Copies with 512 KB, 1 MB and 2 MB were equally fast.
_BLOCK_BYTES = 1 << 20
#: Gives fields by their full keys, and notes on them.
MakeFields = Callable[[], tuple[Mapping[str, Field], Sequence[str]]]


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of the source, as it will be written."""

    name: str
    # In GGUF order: the contiguous dimension first.
    shape: tuple[int, ...]
    # The ggml type that holds the values without loss.
    type: int
    origin: MappedTensor | GgufFile
    # What each written row (each value of a one-dimensional tensor) is multiplied by; None:
    # nothing.
    row_scale: np.ndarray[Any, np.dtype[np.float64]] | None = None

    @property
    def is_gguf(self) -> bool:
        return isinstance(self.origin, GgufFile)

    @property
    def place(self) -> str:
        """File and name for messages."""
        if isinstance(self.origin, GgufFile):
            return f"{self.origin.path}: tensor {self.name}"
        return f"{self.origin.tensors[0].path}: tensor {self.origin.tensors[0].name}"

    def stored(self) -> list[tuple[Path, int, int]]:
        """Where the bytes stand that the tensor is written as in its own type, one after the other,
        as (file, first byte, bytes); nothing where they are to be made."""
        if self.row_scale is not None:
            return []
        if isinstance(self.origin, MappedTensor):
            return self.origin.stored()
        info = self.origin.tensors[self.name]
        return [(self.origin.path, self.origin.data_offset + info.offset, info.nbytes)]

    def blocks(self) -> Iterator[RowBlock]:
        """Whole rows in writing order, a MB at a time: values of float types (bfloat16 as uint16
        bits), else bytes."""
        if isinstance(self.origin, MappedTensor):
            return self.origin.blocks(_BLOCK_BYTES)
        return _gguf_blocks(self.origin, self.origin.tensors[self.name])


def _gguf_blocks(gguf: GgufFile, info: TensorInfo) -> Iterator[RowBlock]:
    dtype = {F32: "<f4", F16: "<f2", BF16: "<u2"}.get(info.type, "u1")
    row_length = info.shape[0] if len(info.shape) > 1 else 1
    n_rows = math.prod(info.shape) // row_length
    step = rows_at_once(_BLOCK_BYTES, info.nbytes // n_rows, row_length)
    for start in range(0, n_rows, step):
        stop = min(n_rows, start + step)
        yield RowBlock(
            stop - start,
            (stop - start) * row_length,
            partial(_gguf_rows, gguf, info, dtype, start, stop),
        )


def _gguf_rows(
    gguf: GgufFile, info: TensorInfo, dtype: str, start: int, stop: int
) -> np.ndarray[Any, Any]:
    """Rows [start, stop), two-dimensional unless the tensor is one-dimensional."""
    n_rows = math.prod(info.shape[1:]) if len(info.shape) > 1 else info.shape[0]
    items = info.nbytes // n_rows // int(dtype[-1])
    values = read_values(
        gguf.path, dtype, gguf.data_offset + info.offset, start * items, stop * items
    )
    return values.reshape(stop - start, items) if len(info.shape) > 1 else values


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint or a GGUF file, read as far as a plan needs."""

    path: Path
    arch: str
    # GGUF metadata; a checkpoint's has no RoPE keys yet.
    fields: Mapping[str, Field]
    tensors: Sequence[SourceTensor]
    # Before any scaling.
    geometry: RopeGeometry
    # The source's own; None where a GGUF file has frequency factors of an unknown method.
    scaling: RopeScaling | None
    is_gguf: bool
    notes: Sequence[str] = ()
    # What its query weights were multiplied by, to fold a gain into them.
    query_scale: float = 1.0
    # The file, where it is one and has no parts.
    gguf: GgufFile | None = None
    # Each makes some of the fields that a checkpoint's `fields` lack. That takes longer than a
    # plan, so it is done while data is copied.
    later: tuple[MakeFields, ...] = ()
    # About what those fields take up, beyond a few KB.
    later_bytes: int = 0
    # Why the source's own scaling cannot be taken; `scaling` is None then.
    problem: str = ""
    # The files, as they were before they were read.
    inputs: Inputs = field(default_factory=Inputs)

    @property
    def unrotated(self) -> str:
        """Why the model does not rotate, nothing where it does."""
        prefix = f"{self.arch}."
        return unrotated(
            self.arch,
            {key.removeprefix(prefix): f.value for key, f in self.fields.items()},
        )

    @property
    def needs_mending(self) -> bool:
        """Whether some pairs of a GGUF file never turn in a text (``gguf.rope.still_pairs_of``)."""
        return self.gguf is not None and bool(still_pairs_of(self.gguf))

    @property
    def is_unscaled_gguf(self) -> bool:
        """A GGUF file whose RoPE is as trained, by its keys and without frequency factors."""
        factors = self.geometry.turning is None and any(
            tensor.name in FACTOR_TENSORS for tensor in self.tensors
        )
        return (
            self.is_gguf
            and not self.problem
            and not factors
            and self.scaling == RopeScaling()
            and self.query_scale == 1.0
        )
