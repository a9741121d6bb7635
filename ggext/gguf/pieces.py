"""Pieces of a file, made and written by several threads at once, each in its own place.

A thread reads, converts and writes one piece after the other, so one reads while another writes, and a piece of some
MB is still in the processor's cache when it is written. All of that runs without the interpreter's lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Buffer = bytes | bytearray | memoryview

#: More threads would only wait for each other: a file system writes to one file from one thread at a time.
_MAX_THREADS = 8


@dataclass(frozen=True)
class Piece:
    """``nbytes`` of data that ``make`` gives when its turn has come, in any thread."""

    nbytes: int
    make: Callable[[], Buffer]


def write_pieces(file: int, pieces: Iterator[tuple[int, Piece]], progress: Callable[[int], None]) -> None:
    """Write the pieces, each at its offset of the open ``file``; the first error ends it and is raised.

    ``progress`` gets the bytes of each piece, from one thread at a time. Needs no order of offsets.
    """
    from concurrent.futures import ThreadPoolExecutor

    lock, ended = threading.Lock(), threading.Event()

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
        except BaseException:
            ended.set()
            raise

    n_threads = min(_MAX_THREADS, max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for worker in [pool.submit(work) for _ in range(n_threads)]:
                worker.result()
        finally:
            ended.set()  # also when the main thread is interrupted


def _write(file: int, at: int, piece: Piece) -> None:
    data = memoryview(piece.make()).cast("B")
    if data.nbytes != piece.nbytes:
        raise ValueError(f"{data.nbytes} bytes were made where {piece.nbytes} belong")
    write_at(file, at, data)


def write_at(file: int, at: int, data: memoryview) -> None:
    """All of it: the system may write less at once."""
    while data.nbytes:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written
