"""What a changed header asks of a file: which bytes before the data, and in it, become what.

llama.cpp wants tensors to lie in the order of their infos without gaps, so a tensor is added after
the last one, the last one can be taken away, and one that is followed by others keeps its place and
can only get other values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ggext.errors import GgufError
from ggext.gguf.header import (
    BLOCK,
    alignment_of,
    fits,
    pack_header,
    packed_length,
    roomy_length,
)
from ggext.gguf.reader import GgufFile
from ggext.gguf.types import Field, TensorInfo, aligned

_SPLIT_TENSORS = "split.tensors.count"
Patch = tuple[int, bytes]


class DataWouldMoveError(GgufError):
    """A tensor cannot leave its place, because others lie after it."""


@dataclass(frozen=True)
class NewTensor:
    """A tensor that an edit adds."""

    name: str
    # As in `TensorInfo`.
    shape: tuple[int, ...]
    type: int
    # The bytes of the values.
    data: bytes


@dataclass(frozen=True)
class Edit:
    """What changes in a file's header and data."""

    fields: Mapping[str, Field]
    # In the order of the data.
    infos: Sequence[TensorInfo]
    # Bytes to write, at offsets from the data's start.
    patches: Sequence[Patch]
    # Bytes of the data section afterwards.
    data_length: int
    # Tensors that were overwritten, not removed.
    neutralized: Sequence[str]


@dataclass(frozen=True)
class Change:
    """An edit of one file in its place; sizes and offsets in bytes."""

    edit: Edit
    old_size: int
    new_size: int
    # Where zeros come in: a block's start in the old header.
    insert_at: int
    # How many zeros come in there.
    insert_length: int
    # What is written after that, at offsets of the new file.
    writes: Sequence[Patch]


def plan_edit(
    gguf: GgufFile,
    fields: Mapping[str, Field],
    remove: Mapping[str, bytes | None],
    add: Sequence[NewTensor],
) -> Edit:
    """``remove``: names, each with the bytes that make it do nothing where it cannot be taken away,
    if there are any. A tensor in ``add`` takes the place of one of its name and shape. Raises
    ``DataWouldMoveError``."""
    infos = sorted(gguf.tensors.values(), key=lambda t: t.offset)
    overwritten = {t.name for t in add if _has_place(gguf, t)}
    patches = [
        (gguf.tensors[t.name].offset, t.data) for t in add if t.name in overwritten
    ]
    leaving = (
        gguf.tensors.keys() & (remove.keys() | {t.name for t in add}) - overwritten
    )
    while infos and infos[-1].name in leaving:
        leaving.remove(infos.pop().name)
    for name in leaving:
        neutral = remove.get(name)
        if neutral is None or any(name == t.name for t in add):
            raise DataWouldMoveError(
                f"{gguf.path}: the tensor {name} has others after it and cannot be taken out in "
                "place; "
                "write to a new file: ggext convert FILE OUT"
            )
        patches.append((gguf.tensors[name].offset, neutral))
    length = max(0, gguf.size - gguf.data_offset)
    if len(infos) < len(gguf.tensors):
        length = _end(infos, gguf.alignment)
    for tensor in add:
        if tensor.name not in overwritten:
            offset = _end(infos, gguf.alignment)
            gap = max(
                0, offset - length
            )  # after a last tensor that its writer did not pad
            data = tensor.data.ljust(aligned(len(tensor.data), gguf.alignment), b"\0")
            patches.append((offset - gap, bytes(gap) + data))
            infos.append(
                TensorInfo(
                    tensor.name, tensor.shape, tensor.type, offset, len(tensor.data)
                )
            )
            length = offset + len(data)
    return Edit(
        _counted(fields, len(infos) - len(gguf.tensors)),
        infos,
        patches,
        length,
        sorted(leaving),
    )


def _has_place(gguf: GgufFile, tensor: NewTensor) -> bool:
    old = gguf.tensors.get(tensor.name)
    return old is not None and (old.shape, old.type) == (tensor.shape, tensor.type)


def _end(infos: Sequence[TensorInfo], alignment: int) -> int:
    return aligned(infos[-1].offset + infos[-1].nbytes, alignment) if infos else 0


def _counted(fields: Mapping[str, Field], more: int) -> dict[str, Field]:
    """The first of several parts says how many tensors all of them have; llama.cpp checks it."""
    result = dict(fields)
    if _SPLIT_TENSORS in result:
        result[_SPLIT_TENSORS] = replace(
            result[_SPLIT_TENSORS], value=result[_SPLIT_TENSORS].value + more
        )
    return result


def in_place(
    gguf: GgufFile, edit: Edit, old_header: bytes, block: int = BLOCK
) -> Change:
    """The change that makes ``edit`` of the file itself. ``old_header``: its bytes up to the data
    (all of them where there is no data). ``block``: what the file system moves data by."""
    alignment = alignment_of(edit.fields)
    needed = packed_length(edit.fields, edit.infos)
    start = len(old_header)
    old_length = max(0, gguf.size - gguf.data_offset)
    insert_at = (start - 1) // block * block
    if not old_length:
        new_start = roomy_length(needed, alignment)
        inserted = 0
    elif fits(needed, start, alignment):
        new_start = start
        inserted = 0
    else:
        step = max(block, alignment, BLOCK)
        # longer than what a removed tensor leaves, so that the file's size tells whether the data
        # has moved
        least = max(
            roomy_length(needed, alignment) - start, old_length - edit.data_length + 1
        )
        inserted = aligned(least, step)
        new_start = start + inserted
    header = pack_header(edit.fields, edit.infos, new_start, gguf.version)
    before = (
        old_header[:insert_at] + bytes(inserted) + old_header[insert_at:]
        if inserted
        else old_header
    )
    writes = _differences(before, header)
    writes += [(new_start + offset, data) for offset, data in edit.patches]
    return Change(
        edit, gguf.size, new_start + edit.data_length, insert_at, inserted, writes
    )


def _differences(old: bytes, new: bytes) -> list[Patch]:
    """Runs of blocks of ``new`` that differ from ``old``, which may be shorter."""
    starts = range(0, len(new), BLOCK)
    runs = []
    for differs, run in groupby(
        starts, lambda at: old[at : at + BLOCK] != new[at : at + BLOCK]
    ):
        if differs:
            blocks = list(run)
            runs.append((blocks[0], new[blocks[0] : blocks[-1] + BLOCK]))
    return runs
