"""Changes of a file in its place that a crash cannot leave half done, and that can be taken back.

The order: what will be overwritten goes into the undo file and to the disk; room is made; the new
bytes are written and go to the disk; the undo file says that the change is complete. Whoever opens
the file after a crash finds the change started and takes it back, or finds it complete. Every step
back can itself be interrupted and started again: the file's size says whether data has moved,
and writing the old bytes twice does no harm."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ggext.errors import GgextError, GgufError, OutputError
from ggext.gguf import disk
from ggext.gguf.disk import Progress, silent
from ggext.gguf.edit import Change, Edit, in_place
from ggext.gguf.exclusive import (
    ExclusiveFile,
    Successor,
    exclusive,
    is_successor,
    successor_name,
)
from ggext.gguf.journal import Identity, Journal, Record, undo_path
from ggext.gguf.reader import GgufFile
from ggext.gguf.writer import output_errors

_SAMPLES, _SAMPLE = 16, 4096
_SMALL = 2 * _SAMPLES * _SAMPLE
#: What follows from a disk that fails, for `output_errors`.
_UNCHANGED = "the file is as it was, or is made whole when ggext next opens it"


@dataclass(frozen=True)
class Done:
    """``inserted``: bytes of room made, and ``how``: the data after it was moved (extents only),
    shared or copied; empty where the header had room. ``written``: bytes that were written
    as well."""

    change: Change
    how: str

    @property
    def inserted(self) -> int:
        return self.change.insert_length

    @property
    def written(self) -> int:
        return sum(len(data) for _, data in self.change.writes)


def apply(gguf: GgufFile, edit: Edit, progress: Progress = silent) -> Done:
    """Make ``edit`` of ``gguf.path``. Raises ``OutputError`` or ``GgufError``; the file is then as
    it was."""
    path = gguf.path.resolve()
    with _changing(path) as (file, journal):
        if (file.size, os.fstat(file.handle).st_mtime_ns) != (gguf.size, gguf.mtime_ns):
            raise OutputError(
                f"{path} was changed by another program meanwhile; try again"
            )
        change = in_place(
            gguf, edit, file.read(0, min(gguf.data_offset, gguf.size)), file.block
        )
        try:
            record = _record(file, change)
            journal.begin(record, os.fstat(file.handle))
            successor = Successor(record.part, journal.move_to)
            how = _execute(file, change, successor, progress)
            journal.mark("C")
        except BaseException:
            with contextlib.suppress(
                OSError, GgextError
            ):  # what cannot be taken back now is, at the next open
                if journal.unfinished:
                    journal.mark("A")  # that all is done may be on the disk already
                _take_back(file, journal, progress)
            raise
        return Done(change, how)


def undo(path: Path, progress: Progress = silent, *, trust: bool = False) -> int:
    """Take back every change of ``path``, the last first: the file is byte for byte what it was
    before the first. Returns how many there were. ``trust``: also where the undo file does not
    prove that it is this file's. Raises ``GgufError`` where there is nothing to undo,
    ``UnprovenError``."""
    path = path.resolve()
    with _changing(path, trust=trust) as (file, journal):
        if not journal.entries:
            raise GgufError(
                f"{path} has no {journal.path.name} next to it; there is nothing to undo"
            )
        count = len(journal.entries)
        for _ in range(count):
            _check_ours(file, journal)
            journal.mark("R")
            _take_back(file, journal, progress)
        return count


class UnprovenError(GgufError):
    """An undo file does not prove that it was made for the file that it lies next to."""


def repair(path: Path, progress: Progress = silent, *, trust: bool = False) -> str:
    """End what a crash interrupted. Returns what was done, empty where there was nothing to do.

    ``trust``: also where the undo file does not prove that it is this file's: it may have been put
    there to have the file changed. Raises ``UnprovenError`` without."""
    path = path.resolve()
    journal = Journal.of(path)
    if not journal.unfinished and not (path.exists() and _is_litter(journal, path)):
        return ""
    with output_errors(path, _UNCHANGED), exclusive(path) as file:
        journal = Journal.of(path)  # whoever held the file may have ended it
        if journal.unfinished:
            _check_proven(file, journal, trust)
            return _recover(file, journal, progress)
        if journal.is_torn:
            journal.trim()
            return "a change had been announced and not started: the file is as it was"
    return ""


def _is_litter(journal: Journal, path: Path) -> bool:
    """Whether a crash left an undo file that announces nothing, and that is ours to remove."""
    return journal.is_torn and journal.owner == path.stat().st_uid


@contextlib.contextmanager
def _changing(
    path: Path, *, trust: bool = False
) -> Iterator[tuple[ExclusiveFile, Journal]]:
    """The file for us alone, whole, and the undo file that belongs to it."""
    with output_errors(path, _UNCHANGED), exclusive(path) as file:
        journal = Journal.of(path)
        if journal.entries:
            _check_proven(file, journal, trust)
        if journal.unfinished:
            _recover(file, journal, silent)
        if journal.entries:
            _check_ours(file, journal)
        yield file, journal


def _check_proven(file: ExclusiveFile, journal: Journal, trust: bool) -> None:
    """Raises UnprovenError for an undo file of another owner, or made for another file: else
    anybody who can make a file in the folder could write into this one."""
    status = os.fstat(file.handle)
    if trust or (
        journal.owner == status.st_uid
        and status.st_ino in journal.inodes
        and _stayed(file, journal.entries[-1].record)
    ):
        return
    raise UnprovenError(
        f"{journal.path} does not prove that it was made for {file.path.name}: after a move to "
        f"another disk ggext repair {file.path} takes it if you say so; else move it away"
    )


def _check_ours(file: ExclusiveFile, journal: Journal) -> None:
    if not _is_complete(file, journal.entries[-1].record):
        raise GgufError(
            f"{file.path} is not the file that {journal.path.name} belongs to: it was replaced or "
            "changed since; "
            f"move {journal.path.name} away"
        )


def _is_complete(file: ExclusiveFile, record: Record) -> bool:
    return (
        file.size == record.new_size
        and _digest(file.read(*r) for r in record.written) == record.digest
    )


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _record(file: ExclusiveFile, change: Change) -> Record:
    at = change.insert_at
    inserted = change.insert_length
    ranges = [
        r
        for offset, data in change.writes
        for r in _in_old_file(offset, len(data), at, inserted)
    ]
    if inserted:
        ranges.append((at, file.block))  # by which a gap at a wrong place is noticed
    ranges.append(
        (change.new_size - inserted, change.old_size)
    )  # what is cut off at the end, if it is
    clipped = [
        (start, min(length, change.old_size - start))
        for start, length in ranges
        if start < change.old_size
    ]
    return Record(
        change.old_size,
        change.new_size,
        at,
        inserted,
        saved=[(start, file.read(start, length)) for start, length in clipped],
        written=[(offset, len(data)) for offset, data in change.writes],
        digest=_digest(data for _, data in change.writes),
        identity=Identity(
            os.fstat(file.handle).st_ino,
            [
                (offset, _digest([file.read(offset, _SAMPLE)]))
                for offset in _sampled(change.old_size, at, clipped)
            ],
        ),
        part=successor_name(file.path),
    )


def _sampled(
    old_size: int, insert_at: int, changed: list[tuple[int, int]]
) -> list[int]:
    """Where bytes that stay are sampled, evenly spread over the file."""
    offsets = [
        max(old_size - _SAMPLE, 0) * i // (_SAMPLES - 1) for i in range(_SAMPLES)
    ]
    return [
        offset
        for offset in offsets
        if not any(
            offset < start + length and start < offset + _SAMPLE
            for start, length in changed
        )
        and not offset < insert_at < offset + _SAMPLE
    ]


def _stayed(file: ExclusiveFile, record: Record) -> bool:
    """Whether the bytes that a change leaves are those of the file, moved or not yet.

    A record whose samples are not those that ggext takes says nothing of that. None are taken only
    of a small file that changes from end to end."""
    samples = record.identity.samples
    changed = [(start, len(data)) for start, data in record.saved]
    expected = _sampled(record.old_size, record.insert_at, changed)
    if [offset for offset, _ in samples] != expected:
        return False
    if not expected:
        return file.size <= _SMALL
    for offset, digest in samples:
        places = (offset, offset + record.insert_length)
        if not any(_digest([file.read(place, _SAMPLE)]) == digest for place in places):
            return False
    return True


def _in_old_file(
    offset: int, length: int, at: int, inserted: int
) -> Iterator[tuple[int, int]]:
    """Where the bytes of a range of the new file stood before, as (offset, length)."""
    before = min(length, max(0, at - offset)) if inserted else length
    if before:
        yield offset, before
    behind = max(offset, at + inserted)
    if inserted and offset + length > behind:
        yield behind - inserted, offset + length - behind


def _execute(
    file: ExclusiveFile, change: Change, successor: Successor, progress: Progress
) -> str:
    how = ""
    if change.insert_length:
        how = file.insert(change.insert_at, change.insert_length, successor, progress)
        file.sync()  # from here on the size tells that the data has moved
    for offset, data in change.writes:
        file.write(offset, data)
    file.truncate(change.new_size)
    file.sync()
    return how


def _recover(file: ExclusiveFile, journal: Journal, progress: Progress) -> str:
    """End the journal's last, unfinished change. Returns what was done."""
    entry = journal.entries[-1]
    if entry.state == "B" and _is_complete(file, entry.record):
        journal.mark("C")
        return "a change was complete, and its undo file now says so"
    _take_back(file, journal, progress)
    if entry.state == "R":
        return "an interrupted undo was completed"
    return "an interrupted change was taken back: the file is as it was before it"


def _take_back(file: ExclusiveFile, journal: Journal, progress: Progress) -> None:
    if not journal.unfinished:
        journal.trim()
        return
    record = journal.entries[-1].record
    name = successor_name(file.path)
    if is_successor(record.part, file.path):
        name = record.part  # of what a crash left
        disk.remove(file.path.with_name(name))
    _roll_back(file, record, Successor(name, journal.move_to), progress)
    journal.taken_back()


def _roll_back(
    file: ExclusiveFile, record: Record, successor: Successor, progress: Progress
) -> None:
    at = record.insert_at
    inserted = record.insert_length
    if (
        not file.is_current
    ):  # interrupted at the very moment when a new file took its place
        raise OutputError(
            f"{file.path} is another file now; ggext repair {file.path} ends what was interrupted"
        )
    if (
        not min(record.old_size, record.new_size)
        <= file.size
        <= max(record.old_size + inserted, record.new_size)
    ):
        raise GgufError(
            f"{file.path} has {file.size:,} bytes where {record.old_size:,} or {record.new_size:,} "
            "belong: it was "
            f"replaced or cut since; move {undo_path(file.path).name} away"
        )
    moved = inserted > 0 and file.size > record.old_size
    if moved and _close_gap(file, record, successor):
        moved = False
    for offset, data in record.saved:
        before = max(0, at - offset) if moved else len(data)
        file.write(offset, data[:before])
        file.write(max(offset, at) + inserted, data[before:])
    file.truncate(record.old_size + (inserted if moved else 0))
    file.sync()
    if moved:
        file.collapse(at, inserted, successor, progress)
        file.sync()


def _close_gap(file: ExclusiveFile, record: Record, successor: Successor) -> bool:
    """Whether the power failed while a file system moved extents, from the last to the first: the
    gap is then not yet where it belongs, and what stood there still does. The gap is taken out."""
    at = record.insert_at
    inserted = record.insert_length
    there = next((data for offset, data in record.saved if offset == at), b"")
    if (
        file.read(at, len(there)) != there
        or file.read(at + inserted, len(there)) == there
    ):
        return False
    hole = os.lseek(file.handle, at, os.SEEK_HOLE)
    end = os.lseek(file.handle, hole, os.SEEK_DATA)
    if end - hole != inserted:
        raise GgufError(
            f"{file.path} lost its power while data moved, and which hole is ours is not clear"
        )
    file.collapse(hole, inserted, successor, silent)
    return True
