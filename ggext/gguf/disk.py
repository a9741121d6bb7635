"""The system calls that change files in place, each at one place: a test can fail or stop any of
them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ggext.errors import OutputError
from ggext.gguf import pieces, system

#: What a file system says that cannot do a thing at all.
UNSUPPORTED = (
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EXDEV,
    errno.ENOTTY,
    errno.EPERM,
)
_FICLONERANGE = 0x4020940D  # linux/fs.h; fcntl has it from Python 3.12 on
_COPY_AT_ONCE = 64 << 20

Progress = Callable[[int], None]


def silent(_: int) -> None:
    """A progress that no one watches."""


def write_at(file: int, data: bytes, offset: int) -> None:
    pieces.write_at(file, offset, memoryview(data))


def read_at(file: int, length: int, offset: int) -> bytes:
    """Fewer bytes than ``length`` only where the file ends."""
    parts = []
    at = offset
    while at < offset + length:
        part = system.read_at(file, offset + length - at, at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def insert_range(file: int, offset: int, length: int) -> None:
    from ggext import _native

    _native.shift_range(system.native_file(file), False, offset, length)


def collapse_range(file: int, offset: int, length: int) -> None:
    from ggext import _native

    _native.shift_range(system.native_file(file), True, offset, length)


def truncate(file: int, size: int) -> None:
    os.ftruncate(file, size)


def sync(file: int) -> None:
    os.fsync(file)


def replace(source: Path, target: Path) -> None:
    os.replace(source, target)


def remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    system.sync_folder(folder)


def share(
    source: int, target: int, source_at: int, target_at: int, length: int
) -> bool:
    """Let ``target`` refer to the blocks of ``source``; all three numbers are whole blocks, or
    reach to the end. False where the file system cannot."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(
            target,
            _FICLONERANGE,
            struct.pack("=qQQQ", source, source_at, length, target_at),
        )
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    return True


def copy(
    source: int,
    target: int,
    source_at: int,
    target_at: int,
    length: int,
    progress: Progress,
) -> None:
    """``copy_file_range`` where there is such a thing, else through memory."""
    by_kernel = hasattr(os, "copy_file_range")
    while length:
        step = min(length, _COPY_AT_ONCE)
        moved = 0
        if by_kernel:
            try:
                moved = os.copy_file_range(source, target, step, source_at, target_at)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
            by_kernel = moved > 0
        if not moved:
            data = read_at(source, min(step, 1 << 20), source_at)
            if not data:
                raise OSError(errno.EIO, "the file was cut short while it was read")
            write_at(target, data, target_at)
            moved = len(data)
        progress(moved)
        source_at = source_at + moved
        target_at = target_at + moved
        length = length - moved


@dataclass(frozen=True)
class Span:
    """Bytes of one file that go to another."""

    source_at: int
    target_at: int
    length: int


def transfer(
    source: int, target: int, span: Span, folder: Path, progress: Progress
) -> bool:
    """Share the bytes where that can be, else copy them, once there is room for them in
    ``folder``. True: shared."""
    places = (span.source_at, span.target_at, span.length)
    if share(source, target, *places):
        progress(span.length)
        return True
    check_free(folder, span.length)
    copy(source, target, *places, progress)
    return False


def check_free(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder}: {needed:,} bytes have to be copied and the disk has {free:,} free; "
            "free some, or write to another disk"
        )
