"""The folder of a kept chat: one program has it at a time, and only what is ggext's is removed."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ggext.errors import OutputError
from ggext.gguf import system
from ggext.gguf.plain_files import NotPlainError, create_plain, open_plain
from ggext.runtime.closing import Closing

JOURNAL, STATE, SETTINGS, _LOCK = "chat.jsonl", "kv.bin", "settings.json", "chat.lock"
#: Says that no one named the chat, so that it goes when there are many newer ones.
UNNAMED = ".unnamed"
_TRIES = 20


class OpenElsewhereError(OutputError):
    """Another program has the chat open."""


class ChatFolder(Closing):
    """A chat's folder, which others cannot have meanwhile. It is made where it is not there.

    Raises OutputError where another program has it, OSError where it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = self._locked()

    def _locked(self) -> int:
        for _ in range(_TRIES):
            make_private(self.path)
            try:
                lock = _open_lock(self.path / _LOCK)
            except FileNotFoundError:  # who had it has just removed it
                continue
            if system.lock(lock) is not True:
                os.close(lock)
                raise OpenElsewhereError(
                    f"the chat in {self.path} is open in another ggext; leave that one first"
                )
            if _is_at(self.path / _LOCK, lock):
                return lock
            os.close(lock)
        raise OutputError(
            f"{self.path} cannot be locked; another program removes it all the time"
        )

    @property
    def is_there(self) -> bool:
        """Whether the folder is still the one that is locked."""
        return _is_at(self.path / _LOCK, self._lock)

    def make_again(self) -> None:
        """After someone removed it. Raises as the constructor does."""
        os.close(self._lock)
        self._lock = self._locked()

    def remove(self) -> None:
        """Removes the chat's own files, and the folder if nothing else is in it. Who waits for the
        lock finds that it is gone, and makes a new one."""
        names = (JOURNAL, STATE, SETTINGS, UNNAMED, *_leftovers(self.path), _LOCK)
        for name in names:
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()
        self.close()

    def close(self) -> None:
        """Lets other programs have it."""
        lock = self._lock
        self._lock = -1
        if lock >= 0:
            os.close(lock)


def _leftovers(folder: Path) -> Iterable[str]:
    """What a crash left of files that were being written."""
    for name in (JOURNAL, STATE, SETTINGS):
        yield from (path.name for path in folder.glob(f".{name}.*.part"))


def make_private(folder: Path) -> None:
    """The folder and those above it, as far as they are not there: only the user's, whatever the
    umask. Raises OSError."""
    for path in (*reversed(folder.parents), folder):
        with contextlib.suppress(FileExistsError):
            if not path.exists():
                path.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")


def _open_lock(path: Path) -> int:
    try:
        return create_plain(path)
    except FileExistsError:
        pass
    try:
        return open_plain(path, os.O_RDWR, follow=False)
    except NotPlainError as error:
        raise OutputError(f"{path} {error.strerror}; move it away") from None


def _is_at(path: Path, handle: int) -> bool:
    """Whether a name still leads to an open file."""
    try:
        there = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(there.st_mode) and os.path.samestat(there, os.fstat(handle))
