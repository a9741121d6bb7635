"""Which keys and tensors of two GGUF files differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import Field, ValueType, type_name

_SHOWN = 60
_CHUNK = 16 << 20


@dataclass(frozen=True)
class Difference:
    """``before`` and ``after`` in words, ``None`` where the file does not have it."""

    kind: Literal["key", "tensor"]
    name: str
    before: str | None
    after: str | None


def diff(
    before: Path, after: Path, progress: Callable[[int], None] = lambda _: None
) -> list[Difference]:
    """In the order of the first file, then what only the second has. ``progress``: bytes of tensor
    data compared."""
    one = read_gguf(before)
    other = read_gguf(after)
    return [*_keys(one, other), *_tensors(one, other, progress)]


def _keys(one: GgufFile, other: GgufFile) -> Iterator[Difference]:
    for key in {**one.fields, **other.fields}:
        left = one.fields.get(key)
        right = other.fields.get(key)
        if left != right:
            yield Difference("key", key, _value(left, right), _value(right, left))


def _value(field: Field | None, than: Field | None) -> str | None:
    if field is None:
        return None
    if field.type is not ValueType.ARRAY:
        kind = (
            f" ({field.type.name})"
            if than is not None and than.type is not field.type
            else ""
        )
        return _short(field.value) + kind
    assert field.item_type is not None
    text = f"{len(field.value):,} × {field.item_type.name}"
    if than is None or than.type is not ValueType.ARRAY:
        return text
    pairs = zip(field.value, than.value, strict=False)
    first = next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), None)
    return (
        text
        if first is None
        else f"{text}, number {first:,} is {_short(field.value[first])}"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _tensors(
    one: GgufFile, other: GgufFile, progress: Callable[[int], None]
) -> Iterator[Difference]:
    for name in {**one.tensors, **other.tensors}:
        left = _shape(one, name)
        right = _shape(other, name)
        if left is not None and left == right:
            count = _differing_bytes(one, other, name, progress)
            if not count:
                continue
            right = f"{count:,} of {one.tensors[name].nbytes:,} bytes differ"
        yield Difference("tensor", name, left, right)


def _shape(gguf: GgufFile, name: str) -> str | None:
    info = gguf.tensors.get(name)
    return None if info is None else f"{type_name(info.type)} {list(info.shape)}"


def _differing_bytes(
    one: GgufFile, other: GgufFile, name: str, progress: Callable[[int], None]
) -> int:
    import numpy as np

    left, right = (
        np.frombuffer(gguf.tensor_data(name), np.uint8) for gguf in (one, other)
    )
    count = 0
    for start in range(0, len(left), _CHUNK):
        ours = left[start : start + _CHUNK]
        theirs = right[start : start + _CHUNK]
        count += int(np.count_nonzero(ours != theirs))
        progress(len(ours))
    return count
