"""Pieces of a file, made and written by several threads at once, each in its own place.

A thread reads, converts and writes one piece after the other, so one reads while another writes,
and a piece of some MB is still in the processor's cache when it is written. All of that runs
without the interpreter's lock.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ggext.errors import CheckpointError
from ggext.gguf import system

Buffer = bytes | bytearray | memoryview

#: More threads would only wait for each other: a file system writes to one file from one thread at
#: a time.
_MAX_THREADS = 8
#: Long enough for the interpreter's lock, which is needed between pieces, not to matter.
_COPIED_AT_ONCE = 16 << 20


@dataclass(frozen=True)
class Piece:
    """``nbytes`` of data that ``make`` gives when its turn has come, in any thread."""

    nbytes: int
    make: Callable[[], Buffer]


@dataclass(frozen=True)
class StoredPiece:
    """``nbytes`` that stand in another file from ``start`` on, and are written as they are."""

    nbytes: int
    path: Path
    start: int


def stored_pieces(path: Path, start: int, nbytes: int) -> Iterator[StoredPiece]:
    for at in range(0, nbytes, _COPIED_AT_ONCE):
        yield StoredPiece(min(_COPIED_AT_ONCE, nbytes - at), path, start + at)


@contextmanager
def writing(
    file: int,
    pieces: Iterator[tuple[int, Piece | StoredPiece]],
    progress: Callable[[int], None],
) -> Iterator[None]:
    """Write the pieces, each at its offset of the open ``file``, while the block runs and until all
    is written; the first error ends it and is raised.

    ``progress`` gets the bytes of each piece, from one thread at a time. Needs no order of offsets.
    """
    lock = threading.Lock()
    ended = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not ended.is_set():
                with lock:
                    at, piece = next(pieces, (0, None))
                if piece is None:
                    return
                _write(file, at, piece)
                with lock:
                    progress(piece.nbytes)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            errors.append(error)
            ended.set()

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    n_threads = min(
        _MAX_THREADS,
        max(2, cpus),
    )
    workers = [threading.Thread(target=work) for _ in range(n_threads)]
    for worker in workers:
        worker.start()
    try:
        yield
        for worker in workers:
            worker.join()
    finally:
        ended.set()  # also when the main thread is interrupted
        for worker in workers:
            worker.join()
    if errors:
        raise errors[0]


def _write(file: int, at: int, piece: Piece | StoredPiece) -> None:
    if isinstance(piece, StoredPiece):
        _copy(file, at, piece)
        return
    data = memoryview(piece.make()).cast("B")
    if data.nbytes != piece.nbytes:
        raise ValueError(f"{data.nbytes} bytes were made where {piece.nbytes} belong")
    write_at(file, at, data)


def _copy(file: int, at: int, piece: StoredPiece) -> None:
    from ggext import _native

    try:
        source = os.open(piece.path, os.O_RDONLY | system.BINARY)
        try:
            into = system.native_file(file)
            copied = _native.copy(
                system.native_file(source), into, piece.start, at, piece.nbytes
            )
        finally:
            os.close(source)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{piece.path}: {error.strerror}; it could be read before: try again"
        ) from None
    if copied < piece.nbytes:
        raise CheckpointError(
            f"{piece.path} was cut short while it was read; nothing was written: try again"
        )


def write_at(file: int, at: int, data: memoryview) -> None:
    """Writes all of it: the system may write less at once.

    Raises OSError (ENOSPC) where it writes nothing and gives no reason: the loop would not end.
    """
    while data.nbytes:
        written = system.write_at(file, data, at)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[written:]
        at = at + written
