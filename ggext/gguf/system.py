"""System calls that POSIX and Windows have under other names, or only one of them: each at one
place."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

#: For `os.open`: not inherited by other programs, and bytes as they are.
BINARY: int = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

# Where there is no call that reads or writes at a place, the file's own place is moved.
_moving = threading.Lock()


def read_at(file: int, length: int, offset: int) -> bytes:
    """At most ``length`` bytes from a place of an open file, from any thread."""
    if hasattr(os, "pread"):
        return os.pread(file, length, offset)
    with _moving:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, length)


def write_at(file: int, data: memoryview | bytes, offset: int) -> int:
    """Writes at a place of an open file, from any thread; how many of the bytes."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, offset)
    with _moving:
        os.lseek(file, offset, os.SEEK_SET)
        return os.write(file, data)


def native_file(file: int) -> int:
    """What ``ggext._native`` takes for an open file: on Windows the system's handle, since a
    descriptor belongs to the C library that opened it."""
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.get_osfhandle(file)
    return file


def lock(file: int) -> bool | None:
    """Locks an open file for this process, until it is closed, without waiting. False: another one
    has it locked; None: the file system has no locks."""
    if sys.platform == "win32":
        import msvcrt

        try:
            os.lseek(file, 0, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk; Windows keeps them in order by itself."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_permissions(file: int, permissions: int) -> None:
    """Of an open file, where there are such."""
    if hasattr(os, "fchmod"):
        os.fchmod(file, permissions)


def give_to(file: int, like: os.stat_result) -> None:
    """Gives an open file to the owner of another, where this user may."""
    if hasattr(os, "fchown"):
        with suppress(OSError):
            os.fchown(file, like.st_uid, like.st_gid)
