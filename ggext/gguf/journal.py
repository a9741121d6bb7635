"""``FILE.ggext-undo``: what stood where a change was made, so that it can be taken back, whole or
half done.

    "ggext-undo 1\\n", then frames: kind (1 byte), length (uint64), payload, SHA-256 of these three.

``B`` begins a change: JSON (sizes, ranges) and the old bytes. ``C``: it is complete. ``R``: it is
being taken back, ``A``: because it failed. A frame is on the disk before the step that it announces
is taken; a frame that is not whole announces nothing."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggext.errors import GgufError
from ggext.gguf import disk

SUFFIX = ".ggext-undo"
_MAGIC = b"ggext-undo 1\n"
_HEAD = struct.Struct("<cQ")
_DIGEST = 32


@dataclass(frozen=True)
class Record:
    """``saved``: (offset in the old file, bytes). ``written``: (offset, length) in the new file,
    and ``digest`` of what was written there. ``insert_length`` zeros came in at ``insert_at``.
    Sizes in bytes."""

    old_size: int
    new_size: int
    insert_at: int
    insert_length: int
    saved: list[tuple[int, bytes]]
    written: list[tuple[int, int]]
    digest: str

    def packed(self) -> bytes:
        names = ("old_size", "new_size", "insert_at", "insert_length", "written", "digest")
        head = {name: getattr(self, name) for name in names}
        text = json.dumps(head | {"saved": [(at, len(data)) for at, data in self.saved]}).encode()
        return struct.pack("<Q", len(text)) + text + b"".join(data for _, data in self.saved)

    @classmethod
    def unpacked(cls, payload: bytes) -> Record:
        """Raises ``ValueError`` or a relative of it for what ``packed`` did not make."""
        (length,) = struct.unpack_from("<Q", payload)
        values: dict[str, Any] = json.loads(payload[8 : 8 + length])
        saved, at = [], 8 + length
        for offset, size in values.pop("saved"):
            saved.append((int(offset), payload[at : at + size]))
            at += size
        written = [(int(offset), int(size)) for offset, size in values.pop("written")]
        record = cls(saved=saved, written=written, **values)
        numbers: list[Any] = [
            record.old_size,
            record.new_size,
            record.insert_at,
            record.insert_length,
        ]
        numbers += [n for pair in written for n in pair] + [offset for offset, _ in saved]
        if not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise ValueError("a number is missing or negative")
        return record


@dataclass
class Entry:
    """``end``: where its last frame ends. ``state``: the kind of that frame."""

    record: Record
    end: int = 0
    state: str = "B"


@dataclass
class Journal:
    """The undo file at ``path``, which need not be there. ``entries``: the oldest change first.
    ``is_torn``: behind them a crash left part of a frame."""

    path: Path
    entries: list[Entry] = field(default_factory=list)
    is_torn: bool = False
    _end: int = 0

    @classmethod
    def of(cls, gguf: Path) -> Journal:
        """Raises ``GgufError`` for an undo file that is none."""
        journal = cls(undo_path(gguf))
        try:
            data = journal.path.read_bytes()
        except FileNotFoundError:
            return journal
        except OSError as error:
            raise GgufError(
                f"{journal.path}: {error.strerror or error}; make it readable"
            ) from None
        start = data[: len(_MAGIC)]
        if start != _MAGIC and not _MAGIC.startswith(
            start.rstrip(b"\0")
        ):  # zeros: it never reached the disk
            raise GgufError(f"{journal.path} is not an undo file of ggext; move it away")
        journal._read(data)
        journal.is_torn = journal._end < len(data) or not journal.entries
        return journal

    def _read(self, data: bytes) -> None:
        self._end = len(_MAGIC) if data.startswith(_MAGIC) else 0
        while self._end:
            start = self._end
            if len(data) - start < _HEAD.size + _DIGEST:
                return
            kind, length = _HEAD.unpack_from(data, start)
            body = start + _HEAD.size + length
            if length > len(data) - start - _HEAD.size - _DIGEST:
                return
            if hashlib.sha256(data[start:body]).digest() != data[body : body + _DIGEST]:
                return
            try:
                self._take(kind.decode(), data[start + _HEAD.size : body])
            except (ValueError, TypeError, KeyError, IndexError, struct.error) as error:
                raise GgufError(
                    f"{self.path}: malformed at byte {start} ({error}); move it away"
                ) from None
            self._end = self.entries[-1].end = body + _DIGEST

    def _take(self, kind: str, payload: bytes) -> None:
        if kind == "B":
            self.entries.append(Entry(Record.unpacked(payload)))
        elif kind in ("A", "C", "R"):
            self.entries[-1].state = kind
        else:
            raise ValueError(f"a frame of the unknown kind {kind!r}")

    @property
    def unfinished(self) -> bool:
        return bool(self.entries) and self.entries[-1].state != "C"

    def begin(self, record: Record) -> None:
        self._append("B", record.packed())
        self.entries.append(Entry(record, self._end))

    def mark(self, state: str) -> None:
        """The last change's state: A, C or R."""
        self._append(state, b"")
        self.entries[-1] = Entry(self.entries[-1].record, self._end, state)

    def _append(self, kind: str, payload: bytes) -> None:
        """On the disk when this returns."""
        is_new = not self._end
        frame = _HEAD.pack(kind.encode(), len(payload)) + payload
        frame += hashlib.sha256(frame).digest()
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            start = max(self._end, len(_MAGIC))
            disk.truncate(handle, self._end)  # what a crash left of a frame
            disk.write_at(handle, (_MAGIC if is_new else b"") + frame, 0 if is_new else start)
            disk.sync(handle)
        finally:
            os.close(handle)
        if is_new:
            disk.sync_folder(self.path.parent)
        self._end = start + len(frame)

    def trim(self) -> None:
        """Cut off what is behind the frames of ``entries``; without any the file goes."""
        if not self.entries:
            disk.remove(self.path)
            self._end = 0
            return
        self._end = self.entries[-1].end
        handle = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            disk.truncate(handle, self._end)
            disk.sync(handle)
        finally:
            os.close(handle)


def undo_path(gguf: Path) -> Path:
    return gguf.with_name(gguf.name + SUFFIX)
