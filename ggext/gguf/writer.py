"""Write a GGUF file: header, then each tensor's data as it is produced, by several threads.

The file is written beside its place and renamed when whole, so an interrupted or failed run leaves
what was there before. Where there was a file, the new one is on the disk before the old one goes,
so that a power cut leaves one of them; a new file reaches the disk when the system sees fit, as
with cp.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ggext.errors import OutputError
from ggext.gguf import system
from ggext.gguf.header import SLACK, alignment_of, fits, pack_header, packed_length, roomy_length
from ggext.gguf.pieces import Buffer, Piece, StoredPiece, write_at, writing
from ggext.gguf.types import Field, TensorInfo, aligned

# Nothing that is there already is opened, nor what a link of that name points to.
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True)
class TensorToWrite:
    """``shape`` in GGUF order (contiguous dimension first), ``type`` a ggml type number, ``chunks``
    gives the ``nbytes`` of data one after the other when their turn has come: bytes, or pieces that
    the writer's threads make."""

    name: str
    shape: tuple[int, ...]
    type: int
    nbytes: int
    chunks: Callable[[], Iterable[Buffer | Piece | StoredPiece]]


def write_gguf(
    path: Path,
    fields: Mapping[str, Field],
    tensors: Sequence[TensorToWrite],
    progress: Callable[[int], None] = lambda _: None,
    complete: Callable[[], Mapping[str, Field]] | None = None,
    room: int = 0,
    approve: Callable[[], None] = lambda: None,
) -> int:
    """Write the file and return its size in bytes. ``progress`` gets the bytes of each piece.
    ``complete`` gives all fields, where ``fields`` are not all, and is called while the data is
    written: ``room`` and about ``SLACK`` bytes more fit, for others the file is written again. What
    is not needed of it remains as padding. ``approve`` is called before the file gets its name, and
    raises where it must not.

    Raises ``OutputError`` when the disk is too small or writing fails; ``path`` is then untouched.
    """
    arranged = arrange(fields, tensors, room=room + SLACK if complete else 0)
    try:
        with replacing(path, arranged.size) as beside, output_errors(path):
            write_arranged(beside, arranged, progress, complete)
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
    """A file to be: ``infos`` of the ``tensors``, ``start`` of their data, ``size`` of it all in
    bytes."""

    fields: Mapping[str, Field]
    start: int
    infos: list[TensorInfo]
    tensors: Sequence[TensorToWrite]
    size: int


def arrange(
    fields: Mapping[str, Field], tensors: Sequence[TensorToWrite], room: int = 0
) -> Arranged:
    """``room``: bytes for fields that are not known yet."""
    alignment = alignment_of(fields)
    infos = layout(tensors, alignment)
    start = roomy_length(packed_length(fields, infos) + room, alignment)
    size = start + (aligned(infos[-1].offset + infos[-1].nbytes, alignment) if infos else 0)
    return Arranged(fields, start, infos, tensors, size)


def write_arranged(
    path: Path,
    arranged: Arranged,
    progress: Callable[[int], None],
    complete: Callable[[], Mapping[str, Field]] | None = None,
) -> None:
    """Write the file, which is there and empty. Raises ``OSError``."""
    from ggext import _native

    with path.open("r+b", buffering=0) as file:  # after O_TRUNC, ext4 writes all data out on close
        _native.reserve(system.native_file(file.fileno()), arranged.size)
        with writing(file.fileno(), _placed(arranged), progress):
            header = _header(arranged, complete() if complete else arranged.fields)
        write_at(file.fileno(), 0, memoryview(header))
        file.truncate(arranged.size)


def _header(arranged: Arranged, fields: Mapping[str, Field]) -> bytes:
    if not fits(packed_length(fields, arranged.infos), arranged.start, alignment_of(fields)):
        raise _NoRoomError(fields)
    return pack_header(fields, arranged.infos, arranged.start)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """An ``OSError`` in the block becomes an ``OutputError``."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; nothing was written") from None


def layout(tensors: Sequence[TensorToWrite], alignment: int) -> list[TensorInfo]:
    """Place the tensors one after the other, each start aligned."""
    infos, offset = [], 0
    for tensor in tensors:
        infos.append(TensorInfo(tensor.name, tensor.shape, tensor.type, offset, tensor.nbytes))
        offset = aligned(offset + tensor.nbytes, alignment)
    return infos


def _placed(arranged: Arranged) -> Iterator[tuple[int, Piece | StoredPiece]]:
    """The tensors in pieces, each with its offset in the file; large ones first, so that all
    threads end together."""
    both = zip(arranged.tensors, arranged.infos, strict=True)
    for tensor, info in sorted(both, key=lambda pair: -pair[1].nbytes):
        at = 0
        for chunk in tensor.chunks():
            piece = chunk if isinstance(chunk, (Piece, StoredPiece)) else _as_piece(chunk)
            yield arranged.start + info.offset + at, piece
            at += piece.nbytes
        if at != info.nbytes:
            raise OutputError(
                f"tensor {tensor.name}: {at} bytes were made where {info.nbytes} belong"
            )


def _as_piece(data: Buffer) -> Piece:
    return Piece(memoryview(data).nbytes, lambda: data)


@contextmanager
def whole_file(path: Path, size: int) -> Iterator[BinaryIO]:
    """A new file beside ``path`` that takes its place when the block ends well, and is removed when
    not.

    ``size``: bytes that will be needed; checked against the free space first. It is on the disk
    when it is in place.
    """
    with replacing(path, size) as beside, output_errors(path), beside.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path, size: int = 0) -> Iterator[Path]:
    """The path of a temporary file beside ``path``, renamed to it when the block ends well."""
    with temporary_beside(path, size) as beside:
        yield beside
        put_in_place(beside, path)


def put_in_place(beside: Path, path: Path) -> None:
    """Rename a finished file to ``path``."""
    with output_errors(path):
        if path.exists() and path.stat().st_size:  # something to lose
            sync(beside)
        beside.replace(path)


def sync(path: Path) -> None:
    """Wait until the file is on the disk. Raises ``OSError``."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def temporary_beside(path: Path, size: int = 0) -> Iterator[Path]:
    """An empty file in the folder of ``path``, removed afterwards. ``size``: bytes that must be
    free."""
    check_room(path, size)
    folder = path.parent
    try:
        beside = folder / f".{path.name}.{secrets.token_hex(8)}.part"
        os.close(os.open(beside, _NEW, 0o666))  # less the umask, which only the system can apply
    except OSError as error:
        raise OutputError(
            f"{folder}: {error.strerror or error}; choose a folder that can be written"
        ) from None
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


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
        raise OutputError(f"{path} exists; use --force to replace it, or name another output")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; make it first")
