"""The chats that are kept, as a whole: what there is, renamed, deleted, exported."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

from ggext.chat import kept_settings, session, transcript
from ggext.chat.journal import Journal, read
from ggext.chat.transcript import Turn, questions
from ggext.errors import GgextError, OutputError, UsageError
from ggext.runtime.sampling import Sampling

_JOURNAL = "chat.jsonl"
_QUOTED = 48  # characters of the first question


@dataclass(frozen=True)
class KeptChat:
    """One line of the list."""

    name: str
    # when something was said last, in local time
    used: str
    # the model's file
    model: str
    # how many were asked, in words
    questions: str
    # the first words of the first one
    begins: str


def kept_chats() -> list[KeptChat]:
    """All that can be read, the last used one first."""
    found = []
    for folder in session.chats():
        try:
            model, turns, _, _ = read(folder / _JOURNAL)
        except GgextError:
            continue
        stamp = datetime.fromtimestamp((folder / _JOURNAL).stat().st_mtime).astimezone()
        used = stamp.strftime("%Y-%m-%d %H:%M")
        found.append(KeptChat(folder.name, used, model, questions(turns), _begins(turns)))
    return found


def rename_chat(old: str, new: str) -> None:
    """Raises UsageError, OutputError."""
    source, target = _there(old), session.named(new)
    if target.exists():
        raise UsageError(f"there is a chat {new} already; delete it first, or choose another name")
    with _closed(source):
        _move(source, target)


def delete_chat(name: str) -> None:
    """Raises UsageError where there is none, OutputError where it is open or cannot be deleted."""
    folder = _there(name)
    with _closed(folder):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise OutputError(f"{folder} cannot be deleted: {error.strerror or error}") from None


def export_chat(name: str, path: Path) -> str:
    """Writes a chat; how many questions it has, in words. Raises UsageError, TranscriptError,
    OutputError."""
    folder = _there(name)
    model, turns, _, _ = read(folder / _JOURNAL)
    if path.exists():
        raise OutputError(f"{path} exists; choose another name")
    if path.suffix == ".json":
        transcript.save(path, model, _sampling(folder), turns)
    else:
        transcript.export(path, turns)
    return questions(turns)


def _sampling(folder: Path) -> Sampling:
    kept = kept_settings.load(folder)
    if kept is None:
        return Sampling()
    values = kept.options()
    names = {field.name for field in fields(Sampling)} & set(values)
    return Sampling(**{name: values[name] for name in names})


def _there(name: str) -> Path:
    folder = session.named(name)
    if not (folder / _JOURNAL).is_file():
        raise UsageError(f"there is no chat {name}; ggext chats lists those that are kept")
    return folder


def _closed(folder: Path) -> Journal:
    """Holds the chat, so that no other ggext opens it. Raises OutputError where one has it open."""
    return Journal(folder / _JOURNAL, "")


def _move(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError as error:
        raise OutputError(
            f"{source} cannot be renamed to {target.name}: {error.strerror or error}"
        ) from None


def _begins(turns: list[Turn]) -> str:
    asked = next((turn.content for turn in turns if turn.role == "user"), "")
    words = " ".join(asked.split())
    return words if len(words) <= _QUOTED else f"{words[:_QUOTED]}…"
