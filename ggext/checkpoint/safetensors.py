"""Safetensors files: headers checked, tensors mapped, nothing copied.

Format: u64 length of the header, JSON header {name: {dtype, shape, data_offsets}}, data. The
``safetensors`` package gives no NumPy arrays of bfloat16 and float8, and its errors do not name the
tensor.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.checkpoint.files import quote
from ggext.errors import CheckpointError
from ggext.gguf.plain_files import open_plain

if TYPE_CHECKING:
    import numpy as np

_MAX_HEADER = (
    32 << 20
)  # some 300,000 tensors; Python needs up to 30 times as much memory to parse it
_COMPARED = 1 << 20  # values at a time
#: What people have in place of the file, by its first 8 bytes.
_NOT_WEIGHTS = {
    b"version ": "is a pointer of Git LFS, not the weights; run git lfs pull, or download it",
    b"<!DOCTYP": "is a web page, not the weights; download it again",
    b"<!doctyp": "is a web page, not the weights; download it again",
}
_MAX_DIMENSIONS = 8
_MAX_NAME = 512
#: dtype → NumPy type of its values, or of its bits where NumPy has no such type (bfloat16, float8).
_NUMPY_TYPE = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "F8_E8M0": "u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "u1",
}


@dataclass(frozen=True)
class CheckpointTensor:
    """What a header says of one tensor."""

    name: str
    # As safetensors spells it.
    dtype: str
    # In PyTorch order.
    shape: tuple[int, ...]
    path: Path
    # The first data byte in `path`.
    start: int
    nbytes: int

    def array(self) -> np.ndarray[Any, Any]:
        """The values, mapped read-only from the file; bfloat16 as its uint16 bits, float8 as
        uint8."""
        import numpy as np

        if self.dtype not in _NUMPY_TYPE:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} has dtype {self.dtype}; known: "
                f"{', '.join(_NUMPY_TYPE)}"
            )
        if not self.nbytes:
            return np.empty(self.shape, _NUMPY_TYPE[self.dtype])
        try:
            return np.memmap(
                self.path, _NUMPY_TYPE[self.dtype], "r", self.start, self.shape
            )
        except (
            OSError,
            ValueError,
        ) as error:  # the file has changed since its header was read
            raise CheckpointError(
                f"{self.path}: tensor {self.name} cannot be read: {error}"
            ) from None

    @property
    def is_stored(self) -> bool:
        """Whether the file holds the values as they are: not where a subclass makes them in its
        ``array``."""
        return type(self).array is CheckpointTensor.array

    def values(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Values [start, stop) of one that is stored, all dimensions taken together, read into
        memory. Reading whole MB is twice as fast as mapping them, and a file that was cut short
        meanwhile is an error, not a crash."""
        return read_values(self.path, _NUMPY_TYPE[self.dtype], self.start, start, stop)


def same_values(one: CheckpointTensor, other: CheckpointTensor) -> bool:
    """Whether two tensors are alike in shape, dtype and every value; read in pieces."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    count = math.prod(one.shape)
    pieces = (
        (start, min(count, start + _COMPARED)) for start in range(0, count, _COMPARED)
    )
    return all(
        (_values(one, *piece) == _values(other, *piece)).all() for piece in pieces
    )


def _values(tensor: CheckpointTensor, start: int, stop: int) -> np.ndarray[Any, Any]:
    """Values [start, stop), all dimensions taken together."""
    if tensor.is_stored:
        return tensor.values(start, stop)
    return tensor.array().reshape(-1)[start:stop]


def check_name(name: str, path: Path) -> str:
    """A tensor's name that may stand in a message: printable ASCII."""
    if not (0 < len(name) <= _MAX_NAME and name.isascii() and name.isprintable()):
        raise CheckpointError(
            f"{path}: a tensor has the name {quote(name)}, which no model has; download it again"
        )
    return name


def read_values(
    path: Path, dtype: str, offset: int, start: int, stop: int
) -> np.ndarray[Any, Any]:
    """Values [start, stop) of those that begin at a byte of a file. Raises ``CheckpointError`` if
    they are gone."""
    import numpy as np

    item = np.dtype(dtype).itemsize
    try:
        values: np.ndarray[Any, Any] = np.fromfile(
            path, dtype, stop - start, offset=offset + start * item
        )
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror or error}; it could be read before: try again"
        ) from None
    if len(values) < stop - start:
        raise CheckpointError(
            f"{path} was cut short while it was read; nothing was written: try again"
        )
    return values


def bfloat16_values(
    bits: np.ndarray[Any, Any],
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The values of bfloat16 bit patterns (uint16): each is the upper half of a float32."""
    values: np.ndarray[Any, np.dtype[np.float32]] = (bits.astype("<u4") << 16).view(
        "<f4"
    )
    return values


def read_header(path: Path) -> Iterator[CheckpointTensor]:
    """The tensors of one file, each extent checked against the file and the other tensors."""
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if prefix in _NOT_WEIGHTS:
                raise CheckpointError(f"{path} {_NOT_WEIGHTS[prefix]}")
            if len(prefix) < 8:
                raise CheckpointError(
                    f"{path} has {size} bytes; it is not a safetensors file: download it again"
                )
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{path}: its header claims {length} bytes and the file has {size}; download "
                    "it again"
                )
            header = json.loads(
                file.read(length).decode("utf-8"), object_pairs_hook=_without_duplicates
            )
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror or error}; check the path"
        ) from None
    except _DuplicateError as error:
        raise CheckpointError(
            f"{path}: its header has {error} twice; download it again"
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(
            f"{path}: its header is not valid JSON; download it again"
        ) from None
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path}: its header is not a JSON object; download it again"
        )
    header.pop("__metadata__", None)
    tensors = [
        _tensor(path, name, entry, data_start=8 + length, size=size)
        for name, entry in header.items()
    ]
    _check_apart(tensors)
    yield from tensors


class _DuplicateError(Exception):
    """The printable name that stands twice in one JSON object."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _DuplicateError(quote(key))
        values[key] = value
    return values


def _tensor(
    path: Path, name: str, entry: Any, data_start: int, size: int
) -> CheckpointTensor:
    check_name(name, path)
    try:
        dtype = entry["dtype"]
        shape = entry["shape"]
        start, end = entry["data_offsets"]
        whole = len(shape) <= _MAX_DIMENSIONS and all(
            type(n) is int and 0 <= n < 1 << 62 for n in [*shape, start, end]
        )
    except (TypeError, KeyError, ValueError):
        whole = False
        dtype = None
        shape = []
        start = 0
        end = 0
    if not whole or not isinstance(dtype, str):
        raise CheckpointError(
            f"{path}: the header entry of tensor {name!r} is malformed; download it again"
        )
    if end < start or data_start + end > size:
        raise CheckpointError(
            f"{path}: tensor {name} lies at bytes {start} to {end} of {size - data_start} bytes of "
            "data; "
            "the file is truncated: download it again"
        )
    expected = math.prod(shape) * item_bytes(dtype)
    if dtype in _NUMPY_TYPE and expected != end - start:
        raise CheckpointError(
            f"{path}: tensor {name} of {dtype} {list(shape)} needs {expected} bytes and has "
            f"{end - start}; "
            "download it again"
        )
    return CheckpointTensor(
        name,
        quote(dtype, 40).strip("'"),
        tuple(shape),
        path,
        data_start + start,
        end - start,
    )


def item_bytes(dtype: str) -> int:
    """Bytes of one value, 0 for a dtype that is not known."""
    return int(_NUMPY_TYPE.get(dtype, "u0")[-1])


def _check_apart(tensors: list[CheckpointTensor]) -> None:
    for before, after in pairwise(
        sorted((t for t in tensors if t.nbytes), key=lambda t: t.start)
    ):
        if after.start < before.start + before.nbytes:
            raise CheckpointError(
                f"{after.path}: the tensors {before.name} and {after.name} overlap; download the "
                "file again"
            )
