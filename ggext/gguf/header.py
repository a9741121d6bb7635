"""A header of an exact length. What alignment does not take up, a key of spaces does: slack that a
later change of the header uses, so that no data has to move. llama.cpp and the gguf library read
over a key they do not know."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from ggext.errors import GgufError
from ggext.gguf.types import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    Field,
    TensorInfo,
    ValueType,
    pack_string,
)

PADDING_KEY = "ggext.padding"
#: What files that we write keep free in their headers: room for a scaling and its recipe, several
#: times over.
SLACK = 4096
#: Tensor data starts at a multiple of this, the block of nearly all file systems, so that it can be
#: shared.
BLOCK = 4096
_LEAST_PADDING = len(pack_string(PADDING_KEY)) + len(
    Field(ValueType.STRING, "").packed()
)


def alignment_of(fields: Mapping[str, Field]) -> int:
    return (
        int(fields["general.alignment"].value)
        if "general.alignment" in fields
        else DEFAULT_ALIGNMENT
    )


def pack_header(
    fields: Mapping[str, Field],
    tensors: Sequence[TensorInfo],
    length: int,
    version: int = 3,
) -> bytes:
    """The header, ``length`` bytes to the start of the data.

    Raises ``GgufError`` for a length that ``fits`` says no to, and for values that do not fit their
    types."""
    own = _keys(fields)
    infos = _infos(tensors)
    gap = length - _FIXED - len(own) - len(infos)
    if not _fits(gap, alignment_of(fields)):
        raise GgufError(
            f"a header of {length - gap} bytes cannot be made {length} long"
        )
    n_fields = len(fields)
    if gap >= alignment_of(fields):
        own += (
            pack_string(PADDING_KEY)
            + Field(ValueType.STRING, " " * (gap - _LEAST_PADDING)).packed()
        )
        n_fields += 1
    start = MAGIC + struct.pack("<IQQ", version, len(tensors), n_fields)
    return (start + own + infos).ljust(length, b"\0")


def packed_length(fields: Mapping[str, Field], tensors: Sequence[TensorInfo]) -> int:
    """Bytes of the header without any padding."""
    return _FIXED + len(_keys(fields)) + len(_infos(tensors))


def fits(needed: int, length: int, alignment: int) -> bool:
    """Whether a header of ``needed`` bytes can be made to end at ``length``, a multiple of the
    alignment."""
    return length % alignment == 0 and _fits(length - needed, alignment)


def roomy_length(needed: int, alignment: int, congruent_to: int = 0) -> int:
    """The first length with ``SLACK`` to spare that is ``congruent_to`` it modulo ``BLOCK`` and the
    alignment."""
    step = max(BLOCK, alignment)  # both are powers of two
    return needed + SLACK + (congruent_to - needed - SLACK) % step


_FIXED = len(MAGIC) + struct.calcsize("<IQQ")


def _fits(gap: int, alignment: int) -> bool:
    return 0 <= gap < alignment or gap >= _LEAST_PADDING


def _keys(fields: Mapping[str, Field]) -> bytes:
    return b"".join(pack_string(key) + field.packed() for key, field in fields.items())


def _infos(tensors: Sequence[TensorInfo]) -> bytes:
    return b"".join(
        pack_string(t.name)
        + struct.pack(f"<I{len(t.shape)}QIQ", len(t.shape), *t.shape, t.type, t.offset)
        for t in tensors
    )
