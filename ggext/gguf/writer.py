"""Write a GGUF file: header, then each tensor's data as it is produced, by several threads.

The file is written next to its place and renamed when whole, so an interrupted or failed run leaves
what was there before. Where there was a file, the new one is on the disk before the old one goes,
so that a power cut leaves one of them; a new file reaches the disk when the system sees fit, as
with cp.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ggext.errors import OutputError
from ggext.gguf import system
from ggext.gguf.header import (
    SLACK,
    alignment_of,
    fits,
    pack_header,
    packed_length,
    roomy_length,
)
from ggext.gguf.pieces import Buffer, Piece, StoredPiece, write_at, writing
from ggext.gguf.plain_files import open_plain
from ggext.gguf.types import Field, TensorInfo, aligned

# Nothing that is there already is opened, nor what a link of that name points to.
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | system.BINARY


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor of a new file, whose data is made when its turn comes."""

    name: str
    # In GGUF order: the contiguous dimension first.
    shape: tuple[int, ...]
    # A ggml type number.
    type: int
    nbytes: int
    # Gives the `nbytes` of data in order: bytes, or pieces that the writer's threads make.
    chunks: Callable[[], Iterable[Buffer | Piece | StoredPiece]]


@dataclass(frozen=True)
class LateFields:
    """Fields of a new file that are made while its data is written."""

    # Gives all fields of the file.
    make: Callable[[], Mapping[str, Field]]
    # Bytes that they may take beyond those that are known, in addition to about ``SLACK``; for
    # others the file is written again. What is not needed of it remains as padding.
    room: int = 0


def write_gguf(
    path: Path,
    fields: Mapping[str, Field],
    tensors: Sequence[TensorToWrite],
    progress: Callable[[int], None] = lambda _: None,
    late: LateFields | None = None,
    approve: Callable[[], None] = lambda: None,
) -> int:
    """Write the file and return its size in bytes. ``progress`` gets the bytes of each piece.
    ``late``: where ``fields`` are not all. ``approve`` is called before the file gets its name, and
    raises where it must not.

    Raises ``OutputError`` when the disk is too small or writing fails; ``path`` is then untouched.
    """
    reserved = late.room + SLACK if late else 0
    complete = late.make if late else None
    arranged = arrange(fields, tensors, room=reserved)
    try:
        with replacing(path, arranged.size) as beside, output_errors(path):
            write_arranged(beside.handle, arranged, progress, complete)
            approve()
    except _NoRoomError as error:
        return write_gguf(path, error.fields, tensors, progress, approve=approve)
    return arranged.size


class _NoRoomError(Exception):
    """``fields`` do not fit before the data."""

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self.fields = fields


@dataclass(frozen=True)
class Arranged:
    """The layout of a new file."""

    fields: Mapping[str, Field]
    # Where the data begins, in bytes.
    start: int
    # Those of the `tensors`.
    infos: Sequence[TensorInfo]
    tensors: Sequence[TensorToWrite]
    # Bytes of the whole file.
    size: int


def arrange(
    fields: Mapping[str, Field], tensors: Sequence[TensorToWrite], room: int = 0
) -> Arranged:
    """``room``: bytes for fields that are not known yet."""
    alignment = alignment_of(fields)
    infos = layout(tensors, alignment)
    start = roomy_length(packed_length(fields, infos) + room, alignment)
    size = start + (
        aligned(infos[-1].offset + infos[-1].nbytes, alignment) if infos else 0
    )
    return Arranged(fields, start, infos, tensors, size)


def write_arranged(
    file: int,
    arranged: Arranged,
    progress: Callable[[int], None],
    complete: Callable[[], Mapping[str, Field]] | None = None,
) -> None:
    """Write the file, which is open and empty. Raises ``OSError``."""
    from ggext import _native

    _native.reserve(system.native_file(file), arranged.size)
    with writing(file, _placed(arranged), progress):
        all_fields = complete() if complete else arranged.fields
        header = _header(arranged, all_fields)
    write_at(file, 0, memoryview(header))
    os.ftruncate(file, arranged.size)


def _header(arranged: Arranged, fields: Mapping[str, Field]) -> bytes:
    if not fits(
        packed_length(fields, arranged.infos), arranged.start, alignment_of(fields)
    ):
        raise _NoRoomError(fields)
    return pack_header(fields, arranged.infos, arranged.start)


@contextmanager
def output_errors(
    path: Path, consequence: str = "nothing was written"
) -> Iterator[None]:
    """An ``OSError`` in the block becomes an ``OutputError``, which says what follows from it."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; {consequence}") from None


def layout(tensors: Sequence[TensorToWrite], alignment: int) -> list[TensorInfo]:
    """Place the tensors one after the other, each start aligned."""
    infos = []
    offset = 0
    for tensor in tensors:
        infos.append(
            TensorInfo(tensor.name, tensor.shape, tensor.type, offset, tensor.nbytes)
        )
        offset = aligned(offset + tensor.nbytes, alignment)
    return infos


def _placed(arranged: Arranged) -> Iterator[tuple[int, Piece | StoredPiece]]:
    """The tensors in pieces, each with its offset in the file; large ones first, so that all
    threads end together."""
    both = zip(arranged.tensors, arranged.infos, strict=True)
    for tensor, info in sorted(both, key=lambda pair: -pair[1].nbytes):
        at = 0
        for chunk in tensor.chunks():
            piece = (
                chunk if isinstance(chunk, (Piece, StoredPiece)) else _as_piece(chunk)
            )
            yield arranged.start + info.offset + at, piece
            at += piece.nbytes
        if at != info.nbytes:
            raise OutputError(
                f"tensor {tensor.name}: {at} bytes were made where {info.nbytes} belong"
            )


def _as_piece(data: Buffer) -> Piece:
    return Piece(memoryview(data).nbytes, lambda: data)


class NewFile:
    """A file that was made next to its place and is open. It is written by its descriptor, so that
    nothing else is where its name was exchanged, and then it is not put in place."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, also where the name is taken."""
        # the permissions are less the umask, which only the system can apply
        self.path = path
        self.handle = os.open(path, _NEW, 0o666)
        self._status = os.fstat(self.handle)
        self._open = True

    def close(self) -> None:
        """Before it is renamed, which Windows does not do with open files, and where many are
        written. Further calls do nothing."""
        if self._open:
            self._open = False
            os.close(self.handle)

    def sync(self) -> None:
        """Waits until the data is on the disk. Raises OSError."""
        if self._open:
            os.fsync(self.handle)
        else:
            _sync(self.path)

    def put_in_place(self, path: Path) -> None:
        """Closes the file and renames it. Raises ``OutputError``."""
        with output_errors(path):
            if _is_to_lose(path):
                self.sync()
            self.close()
            if not os.path.samestat(self._status, self.path.lstat()):
                raise OutputError(
                    f"{path} is not written: {self.path} was exchanged meanwhile; write to a "
                    "folder in which only you can change files"
                )
            self.path.replace(path)


def put_in_place(file: Path, path: Path) -> None:
    """Renames a finished file, from a folder that only the user can enter. Raises
    ``OutputError``."""
    with output_errors(path):
        if _is_to_lose(path):
            _sync(file)
        file.replace(path)


def _is_to_lose(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _sync(path: Path) -> None:
    handle = open_plain(path, os.O_RDWR, follow=False)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path, size: int) -> Iterator[BinaryIO]:
    """A new file next to ``path`` that takes its place when the block ends well, and is removed
    when not.

    ``size``: bytes that will be needed; checked against the free space first. It is on the disk
    when it is in place.
    """
    with replacing(path, size) as beside, output_errors(path):
        with os.fdopen(beside.handle, "r+b", closefd=False) as file:
            yield file
        beside.sync()


@contextmanager
def replacing(path: Path, size: int = 0) -> Iterator[NewFile]:
    """A temporary file next to ``path``, renamed to it when the block ends well."""
    with temporary_beside(path, size) as beside:
        yield beside
        beside.put_in_place(path)


@contextmanager
def temporary_beside(path: Path, size: int = 0) -> Iterator[NewFile]:
    """An empty file in the folder of ``path``, removed afterwards. ``size``: bytes that must be
    free."""
    check_room(path, size)
    folder = path.parent
    try:
        beside = NewFile(folder / f".{path.name}.{secrets.token_hex(8)}.part")
    except OSError as error:
        raise OutputError(
            f"{folder}: {error.strerror or error}; choose a folder that can be written"
        ) from None
    try:
        yield beside
    finally:
        beside.close()
        beside.path.unlink(missing_ok=True)


@contextmanager
def private_folder_beside(path: Path) -> Iterator[Path]:
    """A folder next to ``path`` that only the user can enter, removed afterwards: for files that
    another library writes by their names."""
    try:
        folder = tempfile.TemporaryDirectory(
            prefix=f".{path.name}.", suffix=".part", dir=path.parent
        )
    except OSError as error:
        raise OutputError(
            f"{path.parent}: {error.strerror or error}; choose a folder that can be written"
        ) from None
    with folder as name:
        yield Path(name)


def check_room(path: Path, size: int) -> None:
    """Raises ``OutputError`` where the disk of a file to be has not that many bytes free."""
    folder = path.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(
            f"{folder}: {error.strerror or error}; choose a folder that can be written"
        ) from None
    if size > free:
        raise OutputError(
            f"{path} needs {size:,} bytes and the disk has {free:,} free; free some, or write "
            "elsewhere"
        )


def check_output(path: Path, force: bool) -> None:
    """Raise ``OutputError`` early for an output that could not be put in place."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name the output file")
    if path.exists() and not force:
        raise OutputError(
            f"{path} exists; use force=True to replace it, or name another output"
        )
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; make it first")
