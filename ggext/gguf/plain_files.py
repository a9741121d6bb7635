"""Files that come from strangers, opened: only plain ones, and no more of them than expected.

A name may lead to a pipe that no one writes to, a device, or a sparse giant. What a name leads to
is decided after it was opened, on the open file, so that it cannot be exchanged in between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ggext.gguf import system

_FLAGS = system.BINARY | getattr(os, "O_NONBLOCK", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_TRIES = 100
_PART = 1 << 20  # bytes of one read


class NotPlainError(OSError):
    """What a name leads to is no plain file, or larger than it may be."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EINVAL, message)


def open_plain(path: Path, mode: int = os.O_RDONLY, *, follow: bool = True) -> int:
    """A descriptor of a plain file. ``follow``: whether the name itself may be a link.

    Raises OSError, NotPlainError for a pipe, a device, a socket or a folder.
    """
    try:
        handle = os.open(path, mode | _FLAGS | (0 if follow else _NO_LINK))
    except OSError as error:
        if not follow and error.errno in (errno.ELOOP, errno.EMLINK):
            raise NotPlainError("is a link and not a plain file") from None
        if error.errno in (
            errno.ENXIO,
            errno.EISDIR,
        ):  # a pipe opened to write, a socket, a folder
            raise NotPlainError("is not a plain file") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotPlainError("is not a plain file")
    return handle


def read_plain(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """All of a plain file of at most ``limit`` bytes. Raises OSError, NotPlainError."""
    with os.fdopen(open_plain(path, follow=follow), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise NotPlainError(f"has {size:,} bytes, and at most {limit:,} are read")
        return file.read(limit)


def read_bounded(file: BinaryIO, limit: int) -> bytes:
    """All of an open file, which may be a pipe, of at most ``limit`` bytes: a sparse giant and a
    device without end cost neither more time nor more memory. Raises OSError, NotPlainError."""
    status = os.fstat(file.fileno())
    data = bytearray()
    if not stat.S_ISREG(status.st_mode) or status.st_size <= limit:
        while len(data) <= limit and (part := file.read(_PART)):
            data += part
        if len(data) <= limit:
            return bytes(data)
    raise NotPlainError(f"has more than {limit:,} bytes")


def create_plain(path: Path, permissions: int = 0o600) -> int:
    """A descriptor of a new file with exactly these permissions, whatever the umask.

    Raises FileExistsError for a name that is taken, be it by a link that leads nowhere.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS | _NO_LINK
    with _folder(path) as folder:
        handle = os.open(path.name, flags, 0o600, dir_fd=folder)
    try:
        system.set_permissions(handle, permissions)
    except BaseException:
        os.close(handle)
        raise
    return handle


def create_beside(path: Path, suffix: str) -> tuple[int, Path]:
    """A new file ``.NAME.RANDOM`` + ``suffix`` in the folder of ``path``: descriptor and path."""
    for _ in range(_TRIES):
        beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}{suffix}")
        with contextlib.suppress(FileExistsError):
            return create_plain(beside), beside
    raise FileExistsError(errno.EEXIST, "no name is free for a temporary file")


@contextlib.contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends well; else it is removed.
    Only the user can read it, whatever the umask; it is on the disk when it is in place.

    Raises OSError."""
    handle, beside = create_beside(path, ".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int | None]:
    """The folder of ``path``, open: what is made in it is made there and nowhere else."""
    if os.open not in os.supports_dir_fd:
        yield None
        return
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | system.BINARY)
    try:
        yield handle
    finally:
        os.close(handle)
