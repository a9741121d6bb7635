"""``FILE.ggext-undo``: what stood where a change was made, so that it can be taken back, whole or
half done.

    "ggext-undo 2\n", then frames: kind (1 byte), length (uint64), payload, SHA-256 of these three.

``B`` begins a change: JSON (sizes, ranges, the file that it is of) and the old bytes. ``C``: it is
complete. ``R``: it is being taken back, ``A``: because it failed, ``D``: that is done. ``N``: the
file of that name is another one from here on. A frame is on the disk before the step that it
announces is taken; a frame that is not whole announces nothing.

Anybody who can make a file in the folder can make an undo file, and its checksums. So a record says
of which file it is (`Identity`), and is believed without being asked only for that one."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggext.errors import GgufError
from ggext.gguf import disk, system
from ggext.gguf.plain_files import NotPlainError, create_plain, open_plain

SUFFIX = ".ggext-undo"
_MAGIC = b"ggext-undo 2\n"
_HEAD = struct.Struct("<cQ")
_DIGEST = 32
_MOST = 1 << 62  # bytes; no offset, size or sum of them is larger
_MANY_BYTES = 1 << 26
_MAX_BYTES = (
    1 << 34
)  # of an undo file; what a change overwrites is the header and some tensors


@dataclass(frozen=True)
class Identity:
    """Which file a change is of: not its name, which anybody can give to another one."""

    # the file system's number of the file
    inode: int
    # samples of the bytes that the change leaves as they are: (offset before it, SHA-256)
    samples: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class Record:
    """One change of a file, as its undo file keeps it; sizes and offsets in bytes."""

    old_size: int
    new_size: int
    # Where zeros came in.
    insert_at: int
    # How many came in there.
    insert_length: int
    # (offset in the old file, bytes).
    saved: Sequence[tuple[int, bytes]]
    # (offset, length) in the new file.
    written: Sequence[tuple[int, int]]
    # Of what was written there.
    digest: str
    identity: Identity
    # The name of the file that took the old one's place, if one did.
    part: str

    def packed(self) -> bytes:
        head = {name: getattr(self, name) for name in _NUMBERS}
        head |= {"written": self.written, "digest": self.digest, "part": self.part}
        head |= {"inode": self.identity.inode, "samples": self.identity.samples}
        text = json.dumps(
            head | {"saved": [(at, len(data)) for at, data in self.saved]}
        ).encode()
        return (
            struct.pack("<Q", len(text))
            + text
            + b"".join(data for _, data in self.saved)
        )

    @classmethod
    def unpacked(cls, payload: bytes) -> Record:
        """Raises ``ValueError`` for what ``packed`` did not make: numbers that are none, that reach
        beyond the file that they speak of, or bytes that are missing."""
        (length,) = struct.unpack_from("<Q", payload) if len(payload) >= 8 else (_MOST,)
        if length > len(payload) - 8:
            raise ValueError("its description is cut off")
        try:
            values = json.loads(payload[8 : 8 + length])
        except RecursionError:
            raise ValueError("its description is nested too deep") from None
        if not isinstance(values, dict) or values.keys() != _KEYS:
            raise ValueError("its description is not what ggext writes")
        numbers = {name: _number(values.get(name)) for name in (*_NUMBERS, "inode")}
        saved = []
        at = 8 + length
        for offset, size in _pairs(values.get("saved")):
            saved.append((offset, payload[at : at + size]))
            at += size
        if at != len(payload):
            raise ValueError("its bytes are not as many as it says")
        samples = values.get("samples")
        if not isinstance(samples, list) or not all(
            _is_sample(sample) for sample in samples
        ):
            raise ValueError("its samples are malformed")
        digest = values.get("digest")
        part = values.get("part")
        if not isinstance(digest, str) or not isinstance(part, str) or "/" in part:
            raise ValueError("a text is missing")
        identity = Identity(
            numbers.pop("inode"), [(offset, text) for offset, text in samples]
        )
        written = _pairs(values.get("written"))
        record = cls(
            **numbers,
            saved=saved,
            written=written,
            digest=digest,
            identity=identity,
            part=part,
        )
        record._check_bounds()
        return record

    def _check_bounds(self) -> None:
        """Every range lies in its file, and bytes that the change took away are in ``saved``."""
        if self.insert_length and self.insert_at > self.old_size:
            raise ValueError("its gap is beyond the file's end")
        if any(offset + len(data) > self.old_size for offset, data in self.saved):
            raise ValueError("it saved bytes from beyond the file's end")
        if any(offset + size > self.new_size for offset, size in self.written):
            raise ValueError("it wrote bytes beyond the file's end")
        grown = self.new_size - self.old_size - self.insert_length
        changed = sum(len(data) for _, data in self.saved) + sum(
            size for _, size in self.written
        )
        if abs(grown) > changed:
            raise ValueError("its sizes are not those of its bytes")


_NUMBERS = ("old_size", "new_size", "insert_at", "insert_length")
_KEYS = {*_NUMBERS, "inode", "samples", "saved", "written", "digest", "part"}


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        raise ValueError("a number is missing, negative or too large")
    return value


def _pairs(values: Any) -> list[tuple[int, int]]:
    if not isinstance(values, list):
        raise ValueError("its ranges are malformed")
    pairs = []
    for pair in values:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("its ranges are malformed")
        pairs.append((_number(pair[0]), _number(pair[1])))
    return pairs


def _is_sample(sample: Any) -> bool:
    return (
        isinstance(sample, list)
        and len(sample) == 2
        and isinstance(sample[1], str)
        and _number(sample[0]) >= 0
    )


@dataclass
class Entry:
    """``state``: the kind of its last frame."""

    record: Record
    state: str = "B"


@dataclass
class Journal:
    """The undo file at `path`, which need not exist."""

    path: Path
    # The oldest change first.
    entries: list[Entry] = field(default_factory=list)
    # Whether a crash left a part of a frame after them.
    is_torn: bool = False
    # of the file that the undo file belongs to: the last, after the one before where that is new
    inodes: tuple[int, ...] = ()
    # of whom the undo file is
    owner: int = 0
    _end: int = 0

    @classmethod
    def of(cls, gguf: Path) -> Journal:
        """Raises ``GgufError`` for an undo file that is none."""
        journal = cls(undo_path(gguf))
        try:
            with os.fdopen(open_plain(journal.path, follow=False), "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_nlink != 1:
                    raise NotPlainError("has another name")
                if status.st_size > _MAX_BYTES or _is_sparse(status):
                    raise NotPlainError(f"is a giant of {status.st_size:,} bytes")
                data = file.read()
        except FileNotFoundError:
            return journal
        except NotPlainError as error:
            raise GgufError(f"{journal.path} {error.strerror}; move it away") from None
        except OSError as error:
            raise GgufError(
                f"{journal.path}: {error.strerror or error}; make it readable"
            ) from None
        journal.owner = status.st_uid
        start = data[: len(_MAGIC)]
        if start != _MAGIC and not _MAGIC.startswith(
            start.rstrip(b"\0")
        ):  # zeros: it never reached the disk
            raise GgufError(
                f"{journal.path} is not an undo file of ggext; move it away"
            )
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
            except (ValueError, IndexError) as error:
                raise GgufError(
                    f"{self.path}: malformed at byte {start} ({error}); move it away"
                ) from None
            self._end = body + _DIGEST

    def _take(self, kind: str, payload: bytes) -> None:
        if kind == "B":
            self.entries.append(Entry(Record.unpacked(payload)))
            self.inodes = (self.entries[-1].record.identity.inode,)
        elif kind in ("A", "C", "R"):
            self.entries[-1].state = kind
        elif kind == "D":
            self.entries.pop()
        elif kind == "N" and len(payload) == 8:
            self.inodes = (*self.inodes[-1:], int.from_bytes(payload, "little"))
        else:
            raise ValueError(f"a frame of the unknown kind {kind!r}")

    @property
    def unfinished(self) -> bool:
        return bool(self.entries) and self.entries[-1].state != "C"

    def begin(self, record: Record, like: os.stat_result) -> None:
        """``like``: of the file that is changed; who may read that may read what it was."""
        if not self._end:
            self._make(like)
        self._append("B", record.packed())
        self.entries.append(Entry(record))
        self.inodes = (record.identity.inode,)

    def mark(self, state: str) -> None:
        """The last change's state: A, C or R."""
        self._append(state, b"")
        self.entries[-1].state = state

    def taken_back(self) -> None:
        """The last change is no more; without any the undo file goes."""
        self.entries.pop()
        if self.entries:
            self._append("D", b"")
        self.trim()

    def move_to(self, inode: int) -> None:
        """The file of that name is about to be another one."""
        self._append("N", inode.to_bytes(8, "little"))
        self.inodes = (*self.inodes[-1:], inode)

    def _make(self, like: os.stat_result) -> None:
        if self.is_torn:  # what is there announces nothing
            disk.remove(self.path)
            self.is_torn = False
        handle = create_plain(self.path, stat.S_IMODE(like.st_mode) & 0o666)
        try:
            system.give_to(handle, like)
            self.owner = os.fstat(handle).st_uid
        finally:
            os.close(handle)

    def _append(self, kind: str, payload: bytes) -> None:
        """On the disk when this returns."""
        is_new = not self._end
        frame = _HEAD.pack(kind.encode(), len(payload)) + payload
        frame += hashlib.sha256(frame).digest()
        handle = open_plain(self.path, os.O_RDWR, follow=False)
        try:
            start = max(self._end, len(_MAGIC))
            disk.truncate(handle, self._end)  # what a crash left of a frame
            place = 0 if is_new else start
            disk.write_at(handle, (_MAGIC if is_new else b"") + frame, place)
            disk.sync(handle)
        finally:
            os.close(handle)
        if is_new:
            disk.sync_folder(self.path.parent)
        self._end = start + len(frame)

    def trim(self) -> None:
        """Cut off what a crash left of a frame; without any change the file goes."""
        if not self.entries:
            disk.remove(self.path)
            self._end = 0
            return
        handle = open_plain(self.path, os.O_RDWR, follow=False)
        try:
            disk.truncate(handle, self._end)
            disk.sync(handle)
        finally:
            os.close(handle)


def _is_sparse(status: os.stat_result) -> bool:
    return status.st_size > _MANY_BYTES and status.st_blocks * 512 < status.st_size // 2


def undo_path(gguf: Path) -> Path:
    return gguf.with_name(gguf.name + SUFFIX)
