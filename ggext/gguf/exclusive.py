"""A file that is changed in its place while no other program has it open."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ggext.errors import OutputError
from ggext.gguf import disk, system
from ggext.gguf.disk import UNSUPPORTED, Progress
from ggext.gguf.plain_files import NotPlainError, create_plain, open_plain

_SUFFIX = ".ggext-part"


class ExclusiveFile:
    """An open file and its path. On Linux others that open it meanwhile wait until it is closed (a
    write lease)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = _open_alone(path)

    def close(self) -> None:
        os.close(self.handle)

    @property
    def is_current(self) -> bool:
        """Whether the path still leads to the file that is open here."""
        return os.path.samestat(os.fstat(self.handle), self.path.stat())

    @property
    def size(self) -> int:
        return os.fstat(self.handle).st_size

    @property
    def block(self) -> int:
        """What the file system moves data by, a power of two."""
        size = os.fstatvfs(self.handle).f_bsize
        return size if size & (size - 1) == 0 and 512 <= size <= 1 << 20 else 4096

    def read(self, offset: int, length: int) -> bytes:
        return disk.read_at(self.handle, length, offset)

    def write(self, offset: int, data: bytes) -> None:
        disk.write_at(self.handle, data, offset)

    def truncate(self, size: int) -> None:
        if size != self.size:
            disk.truncate(self.handle, size)

    def sync(self) -> None:
        disk.sync(self.handle)

    def insert(
        self, at: int, length: int, successor: Successor, progress: Progress
    ) -> str:
        """Zeros at a block's start; returns how the bytes after them got to their place."""
        try:
            disk.insert_range(self.handle, at, length)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return self._rebuild(at, at, at + length, successor, progress)
        return "moved"

    def collapse(
        self, at: int, length: int, successor: Successor, progress: Progress
    ) -> str:
        """The reverse of ``insert``."""
        try:
            disk.collapse_range(self.handle, at, length)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return self._rebuild(at, at + length, at, successor, progress)
        return "moved"

    def _rebuild(
        self,
        keep: int,
        source_at: int,
        target_at: int,
        successor: Successor,
        progress: Progress,
    ) -> str:
        """A new file takes this one's place: the first ``keep`` bytes, and what is after
        ``source_at`` at ``target_at``."""
        beside = self.path.with_name(successor.name)
        old = os.fstat(self.handle)
        target = create_plain(beside)
        try:
            _lease(target)
            disk.truncate(target, target_at + old.st_size - source_at)
            span = disk.Span(source_at, target_at, old.st_size - source_at)
            shared = disk.transfer(self.handle, target, span, beside.parent, progress)
            disk.write_at(target, disk.read_at(self.handle, keep, 0), 0)
            system.give_to(target, old)
            system.set_permissions(target, stat.S_IMODE(old.st_mode))
            disk.sync(target)
            successor.announce(os.fstat(target).st_ino)
            disk.replace(beside, self.path)
        except BaseException:
            os.close(target)
            disk.remove(beside)
            raise
        os.close(self.handle)
        self.handle = target
        disk.sync_folder(beside.parent)
        return "shared" if shared else "copied"


@dataclass(frozen=True)
class Successor:
    """The file that takes another one's place, where data cannot be moved within that."""

    # in the same folder; no one can know it before
    name: str
    # called with the new file's inode, before it gets the other one's name
    announce: Callable[[int], None]


def successor_name(path: Path) -> str:
    return f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}"


def is_successor(name: str, path: Path) -> bool:
    """Whether a name is one that ``successor_name`` makes."""
    return (
        name.startswith(f".{path.name}.") and name.endswith(_SUFFIX) and "/" not in name
    )


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[ExclusiveFile]:
    """Raises ``OutputError`` for a file that is read-only, has a second name, or is open in any
    program."""
    if sys.platform == "win32":
        raise OutputError(
            f"{path} cannot be changed in place on Windows, where an open file has no successor; "
            "write to a new file"
        )
    try:
        file = ExclusiveFile(path)
    except FileNotFoundError:
        raise OutputError(f"{path} does not exist; check the path") from None
    except NotPlainError as error:
        raise OutputError(f"{path} {error.strerror}; name the .gguf file") from None
    except OSError as error:
        raise OutputError(
            f"{path} cannot be changed: {error.strerror or error}; write to a new file"
        ) from None
    try:
        yield file
    finally:
        file.close()


#: SHA-256, SHA-1 and MD5 in hexadecimal, and git-annex's keys.
_DIGEST = re.compile(
    r"(sha256[-:_])?([0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})|(SHA256|SHA1|MD5)E?-s\d+--\w+(\.\w+)*"
)


def _open_alone(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise NotPlainError("is not a plain file")
    if not status.st_mode & 0o222:
        raise OutputError(f"{path} is read-only; chmod u+w it, or write to a new file")
    if status.st_nlink > 1:
        raise OutputError(
            f"{path} has {status.st_nlink} names (hard links), which all would change; copy it "
            "first"
        )
    owner = _named_by_checksum(path)
    if owner:
        raise OutputError(
            f"{path} lies in {owner}, where its name is its checksum; write to a new file: name an "
            "output"
        )
    handle = open_plain(path, os.O_RDWR)
    try:
        leased = _lease(handle)
        others = users_of(path) if leased is not True else []
        if leased is False or others:
            raise OutputError(
                f"{path} is open in {', '.join(others) or 'another program'}; close that first (a "
                "chat that maps the "
                "file would read changed bytes), or write to a new file"
            )
    except BaseException:
        os.close(handle)
        raise
    return handle


def _named_by_checksum(path: Path) -> str:
    """The store that names its files so, empty for other places: Hugging Face's cache, Ollama, OCI
    layouts, git-annex, Git LFS, DVC."""
    if path.parent.name == "blobs" and (path.parent.parent / "snapshots").is_dir():
        return "Hugging Face's cache"
    if path.parent.name == "blobs" and path.name.startswith("sha256-"):
        return "Ollama's store"
    # DVC and Git LFS cut the digest between folders
    names = (path.name, path.parent.name + path.name)
    return "a store of files" if any(_DIGEST.fullmatch(name) for name in names) else ""


def _lease(handle: int) -> bool | None:
    """True: no other program has the file open or mapped, and who opens it waits until we close it.
    False: another program has. ``None``: not to be had here; then a lock keeps at least other
    ggexts away, or the answer is False again.

    The kernel tells a lease's holder of a waiting opener by SIGIO, which would end the process:
    SIGURG is ignored."""
    if sys.platform == "linux":
        import fcntl

        try:
            fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            return True
        except BlockingIOError:
            return False
        except OSError:
            pass
    return False if system.lock(handle) is False else None


def users_of(path: Path) -> list[str]:
    """The programs that have a file open or mapped, as far as /proc shows them to this user."""
    name = str(path.resolve())
    users = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines = (
                (process / "maps").read_text("utf-8", "surrogateescape").splitlines()
            )
            if any(line.endswith(" " + name) for line in lines) or name in _open_files(
                process
            ):
                users.append(
                    f"{(process / 'comm').read_text().strip()} (process {process.name})"
                )
    return users


def _open_files(process: Path) -> list[str]:
    """Our own have the file that is to be changed, and it is not in anybody's way."""
    if process.name == str(os.getpid()):
        return []
    return [os.readlink(handle) for handle in (process / "fd").iterdir()]
