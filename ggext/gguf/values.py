"""Values out of a header's bytes, bounds-checked. Arrays are walked over when read and built when
asked for: a vocabulary of 150,000 tokens costs a model's reader nothing until someone wants a
token."""

from __future__ import annotations

import mmap
import struct
from functools import cached_property
from pathlib import Path
from typing import Any

from ggext.errors import GgufError
from ggext.gguf.types import STRUCT_CODE, Field, ValueType

_MAX_ARRAY_DEPTH = 4
_SMALLEST_ITEM = {ValueType.STRING: 8, ValueType.ARRAY: 12}


class Cursor:
    """A place in ``data`` that moves on as values are read. No count or length is trusted: each is
    checked against the bytes that are left. ``start``: where ``data`` begins in the file, for
    messages."""

    def __init__(
        self, path: Path, data: mmap.mmap | bytes, at: int = 0, start: int = 0
    ) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.at = at
        self.start = start

    def fail(self, message: str) -> GgufError:
        return GgufError(
            f"{self.path}: {message} (at byte {self.start + self.at}); the file is damaged or not "
            "a GGUF file"
        )

    def unpack(self, code: str) -> Any:
        length = struct.calcsize("<" + code)
        if length > self.size - self.at:
            raise self.fail("the file ends in the middle of its header")
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += length
        return value

    def string(self, what: str) -> str:
        length = self.unpack("Q")
        if length > self.size - self.at:
            raise self.fail(
                f"{what} of {length} bytes reaches past the end of the file"
            )
        text = self.data[self.at : self.at + length].decode("utf-8", "surrogateescape")
        self.at += length
        return text

    def value_type(self, key: str) -> ValueType:
        number = self.unpack("I")
        try:
            return ValueType(number)
        except ValueError:
            raise self.fail(
                f"the key {key!r} has the unknown value type {number}"
            ) from None

    def field(self, key: str) -> Field:
        kind = self.value_type(key)
        if kind is ValueType.STRING:
            return Field(kind, self.string(f"the value of {key!r}"))
        if kind is ValueType.ARRAY:
            start = self.at
            self._skip_array(key, 0)
            return StoredArray(self.path, key, bytes(self.data[start : self.at]), start)
        if kind is ValueType.BOOL:
            return Field(kind, self.unpack("B") != 0)
        return Field(kind, self.unpack(STRUCT_CODE[kind]))

    def _array_head(self, key: str) -> tuple[ValueType, int]:
        item_type = self.value_type(key)
        count = self.unpack("Q")
        smallest = _SMALLEST_ITEM.get(item_type) or struct.calcsize(
            "<" + STRUCT_CODE[item_type]
        )
        if count > (self.size - self.at) // smallest:
            raise self.fail(f"{count} values of {key!r} do not fit into the file")
        return item_type, count

    def _skip_array(self, key: str, depth: int) -> None:
        from ggext import _native

        if depth >= _MAX_ARRAY_DEPTH:
            raise self.fail(
                f"the value of {key!r} nests arrays deeper than {_MAX_ARRAY_DEPTH}"
            )
        item_type, count = self._array_head(key)
        if item_type is ValueType.STRING:
            end = _native.skip_strings(self.data, self.at, count)
            self.at = end if end >= 0 else ~end
            if end < 0:
                self.string(
                    f"a value of {key!r}"
                )  # raises, and says what is wrong with it
        elif item_type is ValueType.ARRAY:
            for _ in range(count):
                self._skip_array(key, depth + 1)
        else:
            self.at += count * struct.calcsize("<" + STRUCT_CODE[item_type])

    def _strings(self, count: int) -> list[str]:
        """Strings that have been walked over. A vocabulary has a hundred thousand: half of what it
        costs to open a small model."""
        data, at, length_at = self.data, self.at, struct.Struct("<Q").unpack_from
        values = []
        for _ in range(count):
            (length,) = length_at(data, at)
            start, at = at + 8, at + 8 + length
            values.append(str(data[start:at], "utf-8", "surrogateescape"))
        self.at = at
        return values

    def array(self, key: str) -> Field:
        """An array's values, built. It has been walked over before, so nothing in it can be
        wrong."""
        item_type, count = self._array_head(key)
        values: list[Any]
        if item_type is ValueType.STRING:
            values = self._strings(count)
        elif item_type is ValueType.ARRAY:
            values = [self.array(key) for _ in range(count)]
        else:
            code = "B" if item_type is ValueType.BOOL else STRUCT_CODE[item_type]
            values = list(struct.unpack_from(f"<{count}{code}", self.data, self.at))
            self.at += count * struct.calcsize("<" + code)
            values = [v != 0 for v in values] if item_type is ValueType.BOOL else values
        return Field(ValueType.ARRAY, values, item_type)


class StoredArray(Field):
    """An array as its bytes stand in the file: element type, count, elements."""

    def __init__(self, path: Path, key: str, raw: bytes, start: int) -> None:
        item_type, count = struct.unpack_from("<IQ", raw)
        own = {"raw": raw, "count": count, "_origin": (path, key, start)}
        for name, value in {
            "type": ValueType.ARRAY,
            "item_type": ValueType(item_type),
            **own,
        }.items():
            object.__setattr__(self, name, value)  # the base is frozen

    raw: bytes
    count: int
    _origin: tuple[Path, str, int]

    @cached_property
    def value(self) -> Any:
        path, key, start = self._origin
        return Cursor(path, self.raw, start=start).array(key).value

    def packed(self) -> bytes:
        return struct.pack("<I", ValueType.ARRAY) + self.raw

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StoredArray) and self.raw == other.raw:
            return True
        return super().__eq__(other)

    __hash__ = None
