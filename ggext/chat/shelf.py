"""The chats that are kept, as a whole: what there is, renamed, deleted, exported."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

from ggext.chat import kept_settings, session, transcript
from ggext.chat.folder import JOURNAL, UNNAMED, ChatFolder
from ggext.chat.journal import read
from ggext.chat.transcript import Turn, questions
from ggext.errors import GgextError, OutputError, UsageError
from ggext.runtime.sampling import Sampling

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
    result = []
    for folder in session.chats():
        try:
            model, turns = read(folder / JOURNAL)
        except GgextError:
            continue
        stamp = datetime.fromtimestamp((folder / JOURNAL).stat().st_mtime).astimezone()
        used = stamp.strftime("%Y-%m-%d %H:%M")
        result.append(
            KeptChat(folder.name, used, model, questions(turns), _begins(turns))
        )
    return result


def rename_chat(old: str, new: str) -> None:
    """Raises UsageError, OutputError."""
    source = _there(old)
    target = session.named(new)
    if target.exists():
        raise UsageError(
            f"there is a chat {new} already; delete it first, or choose another name"
        )
    with ChatFolder(source):
        _move(source, target)
        (target / UNNAMED).unlink(
            missing_ok=True
        )  # it has a name now: it is not cleaned up


def delete_chat(name: str) -> None:
    """Removes what is ggext's of it. Raises UsageError where there is none, OutputError where it is
    open."""
    ChatFolder(_there(name)).remove()


def export_chat(name: str, path: Path) -> str:
    """Writes a chat; how many questions it has, in words. Raises UsageError, TranscriptError,
    OutputError."""
    folder = _there(name)
    model, turns = read(folder / JOURNAL)
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
    if not (folder / JOURNAL).is_file():
        raise UsageError(
            f"there is no chat {name}; ggext chats lists those that are kept"
        )
    return folder


def _move(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError as error:
        raise OutputError(
            f"{source} cannot be renamed to {target.name}: {error.strerror or error}"
        ) from None


def _begins(turns: list[Turn]) -> str:
    first_question = next((turn.content for turn in turns if turn.role == "user"), "")
    words = " ".join(first_question.split())
    return words if len(words) <= _QUOTED else f"{words[:_QUOTED]}…"
