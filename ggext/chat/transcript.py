"""Turns, and the file that keeps them: JSON, checked when read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ggext.arguments import check_fields
from ggext.errors import GgextError, OutputError, UsageError
from ggext.gguf.plain_files import read_plain
from ggext.runtime.sampling import Sampling

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_FORMAT = "ggext chat"
_VERSION = 1
_MAX_BYTES = 256 << 20


class TranscriptError(GgextError):
    """A saved chat cannot be read, or is not one."""


@dataclass(frozen=True)
class Turn:
    """What one side said; ``reasoning``: what the model wrote in its reasoning block before."""

    role: Role
    content: str
    reasoning: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    def as_json(self) -> dict[str, str]:
        """The turn as a saved chat has it."""
        turn = {"role": str(self.role), "content": self.content}
        return turn | {"reasoning": self.reasoning} if self.reasoning else turn


@dataclass(frozen=True)
class Transcript:
    """A chat as it is saved."""

    # the file's name
    model: str
    # None where it cannot be used any more
    sampling: Sampling | None
    turns: tuple[Turn, ...]


def save(path: Path, model: str, sampling: Sampling, turns: Sequence[Turn]) -> None:
    """Writes the chat as JSON; only a whole new file replaces an old one. Raises OutputError."""
    from ggext.gguf.writer import whole_file

    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": model,
        "sampling": asdict(sampling),
        "turns": [turn.as_json() for turn in turns],
    }
    # ASCII, so that a lone surrogate from a model or a terminal cannot fail to be written.
    data = json.dumps(document, indent=1).encode("ascii") + b"\n"
    with whole_file(path, len(data)) as file:
        file.write(data)


def load(path: Path) -> Transcript:
    """Reads a saved chat. Raises TranscriptError for anything else."""
    try:
        document = json.loads(read_plain(path, _MAX_BYTES))
    except OSError as error:
        raise TranscriptError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TranscriptError(f"{path} is not a saved chat: it is not JSON") from error
    return _checked(path, document)


def is_one(path: Path) -> bool:
    """Whether the file is a saved chat."""
    try:
        load(path)
    except TranscriptError:
        return False
    return True


def export(path: Path, turns: Sequence[Turn]) -> None:
    """Writes the chat as Markdown, for reading; `load` does not read it. Raises OutputError."""
    from ggext.gguf.writer import whole_file

    data = "\n---\n\n".join(map(_markdown, turns)).encode("utf-8", "replace")
    with whole_file(path, len(data)) as file:
        file.write(data)


def _markdown(turn: Turn) -> str:
    thoughts = "".join(f"> {line}\n" for line in turn.reasoning.strip().splitlines())
    if thoughts:
        thoughts += "\n"
    return f"**{turn.role.capitalize()}**\n\n{thoughts}{turn.content.strip()}\n"


def _checked(path: Path, document: Any) -> Transcript:
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise TranscriptError(f"{path} is not a chat that ggext saved")
    if document.get("version") != _VERSION:
        raise TranscriptError(
            f"{path} has version {document.get('version')!r:.40}; this ggext reads {_VERSION}"
        )
    model = document.get("model")
    sampling = document.get("sampling")
    turns = document.get("turns")
    if not (
        isinstance(model, str)
        and isinstance(sampling, dict)
        and isinstance(turns, list)
    ):
        raise TranscriptError(
            f"{path} lacks its model, sampling or turns, or they are malformed"
        )
    return Transcript(model, _sampling(sampling), checked_turns(path, turns))


def _sampling(values: Mapping[str, Any]) -> Sampling | None:
    """How the answers were chosen, without a grammar: the user gives again what constrains an
    answer."""
    known = {field.name for field in fields(Sampling)} - {"grammar"}
    try:
        return Sampling(
            **{name: value for name, value in values.items() if name in known}
        )
    except UsageError:
        return None


def questions(turns: Sequence[Turn]) -> str:
    """How many questions were asked, in words."""
    count = sum(turn.role == "user" for turn in turns)
    return f"{count:,} question{'' if count == 1 else 's'}"


def checked_turns(path: Path, turns: list[Any], before: int = 0) -> tuple[Turn, ...]:
    """Turns from JSON, of which the first stands after ``before`` others. Raises
    TranscriptError."""
    return tuple(
        _turn(path, number, turn) for number, turn in enumerate(turns, before + 1)
    )


def _turn(path: Path, number: int, turn: Any) -> Turn:
    read = turn_of(turn)
    if read is None:
        raise TranscriptError(f"{path}: turn {number} is malformed")
    if read.role == "system" and number != 1:
        raise TranscriptError(
            f"{path}: turn {number} is a system prompt, which only turn 1 can be"
        )
    return read


def turn_of(message: object) -> Turn | None:
    """The turn that a mapping with a role and a content stands for; None: it is malformed."""
    if not isinstance(message, Mapping):
        return None
    role = message.get("role")
    content = message.get("content")
    reasoning = message.get("reasoning", "")
    if (
        role not in ROLES
        or not isinstance(content, str)
        or not isinstance(reasoning, str)
    ):
        return None
    return Turn(role, content, reasoning)
