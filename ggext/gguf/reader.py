"""A GGUF header, read and bounds-checked before anything else looks at the file.

No count or length from the file is trusted: each is checked against the bytes that are left, so
nothing larger than the file is ever allocated, and every error says the byte offset.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggext.errors import GgufError
from ggext.gguf.header import PADDING_KEY
from ggext.gguf.plain_files import open_plain
from ggext.gguf.types import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMENSIONS,
    VERSIONS,
    Field,
    TensorInfo,
    ValueType,
    aligned,
    tensor_nbytes,
)
from ggext.gguf.values import Cursor

if TYPE_CHECKING:
    import numpy as np

_SMALLEST_FIELD = 8 + 1 + 4 + 1  # key length, key, type, value
#: Name, dimensions, one size, type, offset.
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class GgufFile:
    """A file's header."""

    path: Path
    version: int
    fields: Mapping[str, Field]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    # Bytes from the file's start.
    data_offset: int
    # Bytes of the file.
    size: int
    # For each key, the padding's too: the bytes where it stands, from the length of its name to the
    # end of its value.
    ranges: Mapping[str, tuple[int, int]] = dataclass_field(default_factory=dict)
    # When the file was last written to, as it was read.
    mtime_ns: int = 0

    @property
    def arch(self) -> str:
        return str(self.fields["general.architecture"].value)

    def get(self, key: str, default: Any = None) -> Any:
        field = self.fields.get(key)
        return default if field is None else field.value

    def arch_keys(self) -> dict[str, Any]:
        """The architecture's own values, without its prefix."""
        prefix = self.arch + "."
        return {
            k.removeprefix(prefix): f.value
            for k, f in self.fields.items()
            if k.startswith(prefix)
        }

    def tensor_data(self, name: str) -> memoryview:
        """The raw bytes of a tensor, mapped from the file, not read."""
        info = self.tensors[name]
        start = self.data_offset + info.offset
        with os.fdopen(open_plain(self.path), "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return memoryview(mapped)[start : start + info.nbytes]

    def float_tensor(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A float32 tensor's values, one-dimensional."""
        import numpy as np

        if self.tensors[name].type != 0:
            raise GgufError(f"{self.path}: tensor {name!r} must be F32")
        return np.frombuffer(self.tensor_data(name), dtype="<f4")


def parse_header(
    path: Path, data: mmap.mmap | bytes, *, any_kind: bool = False
) -> GgufFile:
    """The header of a file whose bytes are ``data``; ``path`` is what errors name. Raises
    ``GgufError``."""
    return _Parser(path, data).parse(any_kind)


class _Parser(Cursor):
    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        super().__init__(path, data)
        self.ranges: dict[str, tuple[int, int]] = {}

    def parse(self, any_kind: bool) -> GgufFile:
        if self.data[:4] != MAGIC:
            raise self.fail(
                f"it starts with {bytes(self.data[:4])!r} instead of {MAGIC!r}"
            )
        self.at = 4
        version = self.unpack("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            reason = (
                "is big-endian"
                if swapped in VERSIONS
                else f"has GGUF version {version}"
            )
            raise GgufError(
                f"{self.path} {reason} (at byte 4); ggext reads little-endian versions 2 and 3"
            )
        n_tensors = self.count("tensors", _SMALLEST_TENSOR)
        n_fields = self.count("keys", _SMALLEST_FIELD)
        fields = dict(self.keys(n_fields))
        fields.pop(
            PADDING_KEY, None
        )  # says nothing, and whoever writes a header makes it again
        alignment = self.alignment(fields)
        tensors = {info.name: info for info in self.tensors(n_tensors)}
        if not any_kind:
            self.check_architecture(fields)
        data_offset = aligned(self.at, alignment)
        self.check_extents(tensors, data_offset, alignment)
        return GgufFile(
            self.path,
            version,
            fields,
            tensors,
            alignment,
            data_offset,
            self.size,
            self.ranges,
        )

    def count(self, what: str, smallest: int) -> int:
        count: int = self.unpack("Q")
        if count > (self.size - self.at) // smallest:
            raise self.fail(f"{count} {what} do not fit into {self.size} bytes")
        return count

    def keys(self, count: int) -> Iterator[tuple[str, Field]]:
        for _ in range(count):
            start = self.at
            key = self.string("a key")
            if not key:
                raise self.fail("a key is empty")
            if key in self.ranges:
                raise self.fail(f"the key {key!r} occurs twice")
            field = self.field(key)
            self.ranges[key] = start, self.at
            yield key, field

    def alignment(self, fields: dict[str, Field]) -> int:
        field = fields.get(
            "general.alignment", Field(ValueType.UINT32, DEFAULT_ALIGNMENT)
        )
        value = field.value
        if (
            field.type is not ValueType.UINT32
            or value < 1
            or value & (value - 1)
            or value > 1 << 20
        ):
            raise self.fail(
                f"general.alignment is {value!r}; it must be a power of two (UINT32)"
            )
        return int(value)

    def check_architecture(self, fields: dict[str, Field]) -> None:
        field = fields.get("general.architecture")
        if field is None or field.type is not ValueType.STRING or not field.value:
            raise self.fail("general.architecture is missing or not a string")

    def tensors(self, count: int) -> Iterator[TensorInfo]:
        seen = set()
        for _ in range(count):
            name = self.string("a tensor's name")
            if name in seen:
                raise self.fail(f"the tensor {name!r} occurs twice")
            seen.add(name)
            dimensions = self.unpack("I")
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise self.fail(f"tensor {name!r} has {dimensions} dimensions")
            shape = tuple(self.unpack("Q") for _ in range(dimensions))
            if not all(0 < n < 1 << 63 for n in shape) or math.prod(shape) >= 1 << 63:
                raise self.fail(
                    f"tensor {name!r} has the impossible shape {list(shape)}"
                )
            kind = self.unpack("I")
            offset = self.unpack("Q")
            try:
                nbytes = tensor_nbytes(name, shape, kind)
            except GgufError as error:
                raise self.fail(str(error)) from None
            yield TensorInfo(name, shape, kind, offset, nbytes)

    def check_extents(
        self, tensors: dict[str, TensorInfo], data_offset: int, alignment: int
    ) -> None:
        end = 0
        for info in sorted(tensors.values(), key=lambda t: t.offset):
            if info.offset % alignment:
                raise self.fail(
                    f"tensor {info.name!r} starts at {info.offset}, not a multiple of {alignment}"
                )
            if info.offset < end:
                raise self.fail(f"tensor {info.name!r} overlaps the one before it")
            end = info.offset + info.nbytes
            if data_offset + end > self.size:
                raise GgufError(
                    f"{self.path}: tensor {info.name!r} ends at byte {data_offset + end} and the "
                    "file has "
                    f"{self.size}; the file is truncated: copy or download it again"
                )
