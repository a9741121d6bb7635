"""A chat kept on disk while it goes on: a journal that is only ever appended to, so that a crash
cuts one line at most.

Each line is a JSON object: the first names the format and the model, each further one says
``{"keep": K, "turns": [...], "left": N}``: the first K turns stay, these follow; the N oldest after
the system prompt are not in the context any more (none where it is not said). A last line without
its end is what a crash was writing; it is left out. So is a damaged line, with the turns that it
had.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggext.chat.folder import ChatFolder
from ggext.chat.transcript import TranscriptError, Turn, checked_turns
from ggext.gguf.plain_files import open_plain, private_file, read_plain
from ggext.gguf.writer import output_errors
from ggext.runtime.closing import Closing

_FORMAT = "ggext journal"
_VERSION = 1
_MAX_BYTES = 1 << 30
_MAX_TURNS = 1 << 20
#: What follows from a disk that fails, for `output_errors`.
_NOT_KEPT = "the chat is not being kept"


class Journal(Closing):
    """The journal of one chat. ``turns``: what it says, ``dropped_turns``: how many left the
    context; ``damaged``: how many of its lines were cut off by a crash, or are none.

    Raises TranscriptError for a file that is no journal, OutputError where it cannot be written or
    another program has it open.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self._file = -1
        with output_errors(path, _NOT_KEPT):
            self.folder = ChatFolder(path.parent)
        try:
            contents = (
                _read(path)
                if os.path.lexists(path)
                else _Contents(model, [], 0, 0, False)
            )
            self.model = contents.model
            self.turns = contents.turns
            self.dropped_turns = contents.dropped_turns
            self.damaged = contents.damaged
            self._head = {"format": _FORMAT, "version": _VERSION, "model": model}
            with output_errors(path, _NOT_KEPT):
                if contents.lost_inside:
                    _keep_aside(path)
                # Rewritten when opened: without the halves of answers, and with a whole last line.
                self._rewrite(self.turns, self.dropped_turns)
        except BaseException:
            self.folder.close()
            raise

    def update(self, turns: Sequence[Turn], dropped_turns: int = 0) -> str:
        """Makes the journal say these turns, and how many left the context; on disk when it
        returns. Returns a sentence if the journal had to be written again, because someone
        removed it; else nothing. After an error it says what it said before. Raises OutputError."""
        pairs = enumerate(zip(self.turns, turns, strict=False))
        keep = next(
            (i for i, (old, new) in pairs if old != new),
            min(len(self.turns), len(turns)),
        )
        if (
            keep == len(turns) == len(self.turns)
            and dropped_turns == self.dropped_turns
        ):
            return ""
        with output_errors(self.path, _NOT_KEPT):
            note = ""
            if self._is_there:
                self._append(_line(_record(keep, turns[keep:], dropped_turns)))
            else:
                self._write_again(turns, dropped_turns)
                note = f"{self.path} had vanished; the whole chat was written again"
        self.turns = list(turns)
        self.dropped_turns = dropped_turns
        return note

    @property
    def _is_there(self) -> bool:
        try:
            same = os.path.samestat(self.path.lstat(), os.fstat(self._file))
        except OSError:
            return False
        return same and self.folder.is_there

    def close(self) -> None:
        """Closes the file and lets other programs have it."""
        self._close_file()
        self.folder.close()

    def remove(self) -> None:
        """Closes and removes it, with its folder if that has nothing else."""
        self._close_file()
        self.folder.remove()

    def _close_file(self) -> None:
        file = self._file
        self._file = -1
        if file >= 0:
            os.close(file)

    def _append(self, line: bytes) -> None:
        """All of the line or nothing: what a full disk leaves of one is cut off again."""
        if (
            os.fstat(self._file).st_size != self._length
        ):  # what could not be cut off then
            os.ftruncate(self._file, self._length)
        try:
            rest = memoryview(line)
            while rest:
                written = os.write(self._file, rest)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest = rest[written:]
            os.fsync(self._file)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._file, self._length)
            raise
        self._length += len(line)

    def _write_again(self, turns: Sequence[Turn], dropped_turns: int) -> None:
        if not self.folder.is_there:
            self.folder.make_again()
        self._rewrite(turns, dropped_turns)

    def _rewrite(self, turns: Sequence[Turn], dropped_turns: int) -> None:
        lines = (
            [self._head, _record(0, turns, dropped_turns)] if turns else [self._head]
        )
        data = b"".join(map(_line, lines))
        with private_file(self.path) as file:
            file.write(data)
        self._close_file()
        self._file = open_plain(self.path, os.O_WRONLY | os.O_APPEND, follow=False)
        self._length = len(data)


def read(path: Path) -> tuple[str, list[Turn]]:
    """The model's name and the turns of a journal that no other process need close. Raises
    TranscriptError."""
    contents = _read(path)
    return contents.model, list(contents.turns)


@dataclass(frozen=True)
class _Contents:
    """What a journal says. ``lost_inside``: of the damaged lines some are not the last."""

    model: str
    turns: Sequence[Turn]
    dropped_turns: int
    damaged: int
    lost_inside: bool


def _keep_aside(path: Path) -> None:
    """The journal as it is, under another name, before its damaged lines go."""
    with suppress(OSError):
        os.link(path, path.with_name(f"{path.name}.damaged"), follow_symlinks=False)


def _record(keep: int, turns: Sequence[Turn], dropped_turns: int) -> dict[str, Any]:
    record = {"keep": keep, "turns": [turn.as_json() for turn in turns]}
    return record | {"left": dropped_turns} if dropped_turns else record


def _line(record: dict[str, Any]) -> bytes:
    # ASCII, so that a lone surrogate from a model or a terminal cannot fail to be written.
    return json.dumps(record).encode("ascii") + b"\n"


def _read(path: Path) -> _Contents:
    try:
        *lines, rest = read_plain(path, _MAX_BYTES, follow=False).split(b"\n")
    except OSError as error:
        raise TranscriptError(f"{path} cannot be read: {error.strerror}") from error
    head = _parsed(lines[0]) if lines else None
    if (
        head is None
        or head.get("format") != _FORMAT
        or head.get("version") != _VERSION
        or not isinstance(head.get("model"), str)
    ):
        raise TranscriptError(
            f"{path} is not the journal of a chat that this ggext reads"
        )
    # None: a turn of a line that is damaged
    turns: list[Turn | None] = []
    dropped_turns = lost = 0
    for line in lines[1:]:
        try:
            turns, dropped_turns = _applied(path, turns, _parsed(line))
        except TranscriptError:
            lost += 1
    gone = sum(turn is None for turn in turns[: dropped_turns + 1])
    whole = [turn for turn in turns if turn is not None]
    dropped_turns = min(max(dropped_turns - gone, 0), len(whole))
    return _Contents(head["model"], whole, dropped_turns, lost + bool(rest), lost > 0)


def _applied(
    path: Path, turns: list[Turn | None], record: dict[str, Any] | None
) -> tuple[list[Turn | None], int]:
    """The turns after a line, and how many left the context. Raises TranscriptError."""
    malformed = TranscriptError(f"{path}: a line is malformed")
    if record is None:
        raise malformed
    keep = record.get("keep")
    new = record.get("turns")
    dropped_turns = record.get("left", 0)
    if not (
        isinstance(keep, int) and 0 <= keep <= _MAX_TURNS and isinstance(new, list)
    ):
        raise malformed
    if not (isinstance(dropped_turns, int) and 0 <= dropped_turns <= keep + len(new)):
        raise malformed
    kept = [*turns[:keep], *([None] * (keep - len(turns)))]
    return [*kept, *checked_turns(path, new, keep)], dropped_turns


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
