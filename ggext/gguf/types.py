"""The facts of the format, each stated once, and the types that carry a file's header.

Source: docs/gguf.md of ggml. Little-endian, versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ggext.errors import GgufError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
#: The ggml types of tensors that are made here.
F32, F16, Q8_0, I32, BF16, MXFP4 = 0, 1, 8, 26, 30, 39
MAX_DIMENSIONS = 4


class ValueType(IntEnum):
    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


#: Value type → struct code of one little-endian value.
STRUCT_CODE = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


@dataclass(frozen=True, eq=False)
class Field:
    """One metadata value. ``item_type`` is the element type of an ARRAY and ``None`` otherwise."""

    type: ValueType
    value: Any
    item_type: ValueType | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Field):
            return NotImplemented
        return (self.type, self.item_type, self.value) == (
            other.type,
            other.item_type,
            other.value,
        )

    __hash__ = None  # type: ignore[assignment]  # a value may be a list

    @classmethod
    def of(cls, value: Any) -> Field:
        """The field that a plain Python value is written as: bool, str, int as UINT32, float as
        FLOAT32, and lists of one kind (int as INT32). Raises ``GgufError`` for anything else."""
        if isinstance(value, cls):
            return value
        if isinstance(value, (list, tuple)):
            one_of_each = {type(v): v for v in value}.values()
            items = {_scalar_type(v, in_array=True) for v in one_of_each} or {
                ValueType.INT32
            }
            if len(items) > 1:
                raise GgufError(
                    f"a GGUF array holds one type of value, not {sorted(items)}"
                )
            return cls(ValueType.ARRAY, list(value), items.pop())
        return cls(_scalar_type(value), value)

    def packed(self) -> bytes:
        """The value's bytes in a file, its type tag in front."""
        tag = struct.pack("<I", self.type)
        if self.type is ValueType.ARRAY:
            assert self.item_type is not None
            tag += struct.pack("<IQ", self.item_type, len(self.value))
            return tag + _pack_items(self.item_type, self.value)
        return tag + _pack_items(self.type, [self.value])


def _scalar_type(value: Any, in_array: bool = False) -> ValueType:
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, str):
        return ValueType.STRING
    if isinstance(value, int):
        return ValueType.INT32 if in_array else ValueType.UINT32
    if isinstance(value, float):
        return ValueType.FLOAT32
    raise GgufError(
        f"{value!r} has no GGUF type; use str, bool, int, float or a list of one of them"
    )


def _pack_items(item_type: ValueType, values: list[Any]) -> bytes:
    if item_type is ValueType.STRING:
        return b"".join(pack_string(v) for v in values)
    if item_type is ValueType.ARRAY:
        return b"".join(Field.packed(v)[4:] for v in values)
    try:
        return struct.pack(f"<{len(values)}{STRUCT_CODE[item_type]}", *values)
    except struct.error as error:
        raise GgufError(
            f"a value does not fit GGUF type {item_type.name}: {error}"
        ) from None


def pack_string(text: str) -> bytes:
    """Length (u64) and UTF-8 bytes. Lone surrogates stand for bytes that were not UTF-8 when
    read."""
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    name: str
    # In GGUF order: the contiguous dimension first.
    shape: tuple[int, ...]
    # A ggml type number.
    type: int
    # Bytes from the data section's start.
    offset: int
    nbytes: int


def type_name(ggml_type: int) -> str:
    from ggext.gguf.tables import constants

    return constants.GGMLQuantizationType(ggml_type).name


def tensor_nbytes(name: str, shape: tuple[int, ...], ggml_type: int) -> int:
    """Bytes of a tensor's data. Raises ``GgufError`` for an unknown type or rows of partial
    blocks."""
    from ggext.gguf.tables import constants

    try:
        block, block_bytes = constants.GGML_QUANT_SIZES[
            constants.GGMLQuantizationType(ggml_type)
        ]
    except (ValueError, KeyError):
        raise GgufError(f"tensor {name!r} has the unknown type {ggml_type}") from None
    if shape[0] % block:
        raise GgufError(
            f"tensor {name!r} has rows of {shape[0]} values, which are not whole blocks of {block}"
        )
    return math.prod(shape) // block * block_bytes


def prevailing_type(tensors: Iterable[tuple[int, tuple[int, ...]]]) -> int:
    """The ggml type that holds most values, of (type, shape) pairs; there must be one."""
    values: dict[int, int] = {}
    for kind, shape in tensors:
        values[kind] = values.get(kind, 0) + math.prod(shape)
    return max(values, key=values.__getitem__)


def aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
