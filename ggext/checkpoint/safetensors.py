"""Safetensors files: headers checked, tensors mapped, nothing copied.

Format: u64 length of the header, JSON header {name: {dtype, shape, data_offsets}}, data. The
``safetensors`` package gives no NumPy arrays of bfloat16, and its errors do not name the tensor.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

_MAX_HEADER = 100 << 20  # the safetensors package's own limit
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
#: dtype → NumPy type of its bits; bfloat16 has none of its own and stays a bit pattern.
_NUMPY_TYPE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}


@dataclass(frozen=True)
class CheckpointTensor:
    """``dtype`` as safetensors spells it, ``shape`` in PyTorch order, ``start`` the first data byte in ``path``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    nbytes: int

    def array(self) -> np.ndarray[Any, Any]:
        """The values, mapped read-only from the file; bfloat16 as its uint16 bits."""
        import numpy as np

        if self.dtype not in _NUMPY_TYPE:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} has dtype {self.dtype}; known: {', '.join(_NUMPY_TYPE)}"
            )
        if not self.nbytes:
            return np.empty(self.shape, _NUMPY_TYPE[self.dtype])
        return np.memmap(self.path, _NUMPY_TYPE[self.dtype], "r", self.start, self.shape)

    @property
    def is_stored(self) -> bool:
        """Whether the file holds the values as they are: not where a subclass makes them in its ``array``."""
        return type(self).array is CheckpointTensor.array

    def values(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Values [start, stop) of one that is stored, all dimensions taken together, read into memory. Reading whole MB
        is twice as fast as mapping them, and a file that was cut short meanwhile is an error, not a crash."""
        return read_values(self.path, _NUMPY_TYPE[self.dtype], self.start, start, stop)


def read_values(path: Path, dtype: str, offset: int, start: int, stop: int) -> np.ndarray[Any, Any]:
    """Values [start, stop) of those that begin at a byte of a file. Raises ``CheckpointError`` if they are gone."""
    import numpy as np

    item = np.dtype(dtype).itemsize
    try:
        values: np.ndarray[Any, Any] = np.fromfile(path, dtype, stop - start, offset=offset + start * item)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; it could be read before: try again") from None
    if len(values) < stop - start:
        raise CheckpointError(f"{path} was cut short while it was read; nothing was written: try again")
    return values


def read_header(path: Path) -> Iterator[CheckpointTensor]:
    """The tensors of one file, each extent checked against the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(f"{path} has {size} bytes; it is not a safetensors file: download it again")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{path}: its header claims {length} bytes and the file has {size}; download it again"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; check the path") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: its header is not valid JSON; download it again") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not a JSON object; download it again")
    for name, entry in header.items():
        if name != "__metadata__":
            yield _tensor(path, name, entry, data_start=8 + length, size=size)


def _tensor(path: Path, name: str, entry: Any, data_start: int, size: int) -> CheckpointTensor:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in [*shape, start, end])
    except (TypeError, KeyError, ValueError):
        whole, dtype, shape, start, end = False, None, [], 0, 0
    if not whole or not isinstance(dtype, str):
        raise CheckpointError(f"{path}: the header entry of tensor {name!r} is malformed; download it again")
    if end < start or data_start + end > size:
        raise CheckpointError(
            f"{path}: tensor {name} lies at bytes {start} to {end} of {size - data_start} bytes of data; "
            "the file is truncated: download it again"
        )
    expected = math.prod(shape) * _ITEM_BYTES.get(dtype, 0)
    if dtype in _ITEM_BYTES and expected != end - start:
        raise CheckpointError(
            f"{path}: tensor {name} of {dtype} {list(shape)} needs {expected} bytes and has {end - start}; "
            "download it again"
        )
    return CheckpointTensor(name, dtype, tuple(shape), path, data_start + start, end - start)
