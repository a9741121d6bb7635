"""Chats that are kept: a folder for each, with its journal and the state of its KV cache."""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.chat import kept_settings
from ggext.chat.folder import JOURNAL, STATE, UNNAMED, ChatFolder, make_private
from ggext.chat.journal import Journal, read
from ggext.chat.kept_settings import KeptSettings
from ggext.chat.transcript import TranscriptError, Turn
from ggext.errors import GgextError, OutputError, UsageError
from ggext.folders import state_folder
from ggext.gguf.plain_files import create_plain
from ggext.runtime import store
from ggext.runtime.checked_state import StateError
from ggext.runtime.closing import Closing

if TYPE_CHECKING:
    from ggext.runtime.engine import Session

_AUTOSAVED = "autosave-"
_KEPT = 20  # chats without a name
_WORTH_SAVING = 30.0  # seconds of reading that a crash may cost


class Keeper(Closing):
    """Keeps one chat: ``turns`` are those that were there, of which the ``dropped_turns`` oldest
    after the system prompt had left the context; with ``session`` its KV cache as well.

    Raises TranscriptError, OutputError.
    """

    def __init__(self, folder: Path, model: str, session: Session | None) -> None:
        self.name = folder.name
        self.session = session  # another one, once its context was opened again
        self._state = folder / STATE
        self._journal = Journal(folder / JOURNAL, model)
        self.turns = tuple(self._journal.turns)
        self.dropped_turns = self._journal.dropped_turns
        self.model = self._journal.model
        self.damaged = self._journal.damaged
        self._settings = kept_settings.load(folder)
        self._unsaved = 0.0
        self._saved: object = None

    @property
    def kept(self) -> bool:
        """Whether anything was said."""
        return bool(self._journal.turns)

    def restore(self) -> tuple[bool, str]:
        """Fills the session's cache from disk; whether that was done, and a sentence that says
        what came of it."""
        if self.session is None or not self._state.exists():
            return False, self._replay("no KV state was saved")
        start = time.perf_counter()
        try:
            count = store.restore(
                self._state, self.session, store.session_key(self.session)
            )
        except StateError as error:
            return False, self._replay(str(error))
        self._saved = _content(self.session)
        return (
            True,
            f"{count:,} tokens of KV cache restored in {time.perf_counter() - start:.2f} s",
        )

    def _replay(self, reason: str) -> str:
        return (
            f"{reason}: the next question reads the chat again"
            if self.turns
            else "a new chat"
        )

    def record(self, turns: Sequence[Turn], dropped_turns: int = 0) -> str:
        """Brings the journal up to date; a sentence if it had vanished. Raises OutputError."""
        return self._journal.update(turns, dropped_turns)

    def keep_settings(self, settings: KeptSettings) -> None:
        """Writes down what the chat runs with, where something was said. Raises OutputError."""
        if self.kept and settings != self._settings:
            kept_settings.save(self._journal.path.parent, settings)
            self._settings = settings

    def turn_over(self, prefill_seconds: float) -> None:
        """Saves the cache when losing it would cost more than half a minute; where that fails,
        leaving says so."""
        self._unsaved += prefill_seconds
        if self._unsaved > _WORTH_SAVING:
            with suppress(GgextError):
                self.save_state()

    def save_state(self) -> None:
        """Writes the KV cache, if it is another one than what is there. Raises OutputError,
        StateError, ModelError."""
        session = self.session
        if session is None or not session.used or _content(session) == self._saved:
            return
        store.save(self._state, session, store.session_key(session))
        self._saved = _content(session)
        self._unsaved = 0.0

    def close(self) -> None:
        """Closes the journal; one in which nothing was said or read is removed."""
        if not self.kept and not self._state.exists():
            self._journal.remove()
        else:
            self._journal.close()


def _content(session: Session) -> tuple[int, tuple[int, ...]]:
    """What tells one cache of a session from another."""
    return session.dropped, session.tokens


def named(name: str) -> Path:
    """The folder of a named chat. Raises UsageError for a name that is no file's."""
    if (
        not name
        or name.startswith(".")
        or "/" in name
        or "\\" in name
        or not name.isprintable()
    ):
        raise UsageError(
            f"{name!r} cannot name a session: take letters, digits, - and _"
        )
    return state_folder() / "sessions" / name


def autosaved() -> Path:
    """The folder of a chat that no one named, new. Of those the 20 that were used last stay.

    Raises OutputError."""
    sessions = state_folder() / "sessions"
    try:
        make_private(sessions)
        _clean_up(sessions)
        while True:
            stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
            folder = sessions / f"{_AUTOSAVED}{stamp}-{secrets.token_hex(3)}"
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                os.close(create_plain(folder / UNNAMED))
                return folder
    except OSError as error:
        raise OutputError(
            f"{sessions}: {error.strerror or error}; the chat is not being kept"
        ) from None


def _clean_up(sessions: Path) -> None:
    """Removes the oldest chats that no one named, by their last use, and none that is open."""
    unnamed = [
        folder
        for folder in sessions.glob(f"{_AUTOSAVED}*")
        if stat.S_ISDIR(folder.lstat().st_mode) and (folder / UNNAMED).is_file()
    ]
    for folder in sorted(unnamed, key=_last_use, reverse=True)[_KEPT - 1 :]:
        with suppress(GgextError, OSError):  # open in another ggext, or not ours
            ChatFolder(folder).remove()


def _last_use(folder: Path) -> float:
    times = []
    for path in (folder, folder / JOURNAL, folder / STATE):
        with suppress(OSError):
            times.append(path.lstat().st_mtime)
    return max(times, default=0.0)


def last_chat() -> str:
    """The name of the chat in which something was said last. Raises UsageError where there is
    none."""
    saved = chats()
    if not saved:
        raise UsageError("there is no chat to go on with; ggext chat FILE begins one")
    return saved[0].name


def kept_chat(name: str) -> KeptSettings | None:
    """The settings of a kept chat, None where it has none. Raises UsageError."""
    try:
        return kept_settings.load(named(name))
    except OutputError:  # there is no home
        return None


def read_only(name: str) -> list[Turn]:
    """The turns of a kept chat where its place cannot be written; none where it cannot be read
    either."""
    try:
        return read(named(name) / JOURNAL)[1]
    except (TranscriptError, OutputError):
        return []


def chats() -> list[Path]:
    """The folders of the chats that are kept and have turns, the last used one first."""
    try:
        journals = [
            folder / JOURNAL for folder in (state_folder() / "sessions").iterdir()
        ]
    except (OSError, OutputError):
        return []
    dated = [
        (journal.stat().st_mtime, journal) for journal in journals if journal.is_file()
    ]
    newest = [journal for _, journal in sorted(dated, reverse=True)]
    return [journal.parent for journal in newest if _has_turns(journal)]


def _has_turns(journal: Path) -> bool:
    """Whether anything is said in it: more than its first line."""
    with suppress(OSError), journal.open("rb") as file:
        return sum(1 for _ in zip(range(2), file, strict=False)) > 1
    return False
