"""A chat kept on disk while it goes on: a journal that is only ever appended to, so that a crash
cuts one line at most.

Each line is a JSON object: the first names the format and the model, each further one says
``{"keep": K, "turns": [...], "left": N}``: the first K turns stay, these follow; the N oldest
behind the system prompt are not in the context any more (none where it is not said). A last line
without its end is what a crash was writing; it is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ggext.chat.transcript import TranscriptError, Turn, checked_turns
from ggext.errors import OutputError
from ggext.gguf.writer import whole_file
from ggext.runtime.closing import Closing

_FORMAT = "ggext journal"
_VERSION = 1
_MAX_BYTES = 1 << 30


class OpenElsewhereError(OutputError):
    """Another program has the chat open."""


class Journal(Closing):
    """The journal of one chat. ``turns``: what it says, ``left``: how many left the context;
    ``damaged``: its last line was cut off by a crash.

    Raises TranscriptError for a file that is no journal, OutputError where it cannot be written or
    another program has it open.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        with _as_output_error(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(path.with_suffix(".lock"))
        try:
            self.model, self.turns, self.left, self.damaged = (
                read(path) if path.exists() else (model, [], 0, False)
            )
            # Rewritten when opened: without the halves of answers, and with a whole last line.
            lines = [{"format": _FORMAT, "version": _VERSION, "model": model}]
            self._replace([*lines, _record(0, self.turns, self.left)] if self.turns else lines)
            with _as_output_error(path):
                self._file: IO[bytes] = path.open("ab")
        except BaseException:
            self._lock.close()
            raise

    def update(self, turns: Sequence[Turn], left: int = 0) -> None:
        """Makes the journal say these turns, and how many left the context; on disk when it
        returns. Raises OutputError."""
        pairs = enumerate(zip(self.turns, turns, strict=False))
        keep = next((i for i, (old, new) in pairs if old != new), min(len(self.turns), len(turns)))
        if keep == len(turns) == len(self.turns) and left == self.left:
            return
        with _as_output_error(self.path):
            self._file.write(_line(_record(keep, turns[keep:], left)))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.turns, self.left = list(turns), left

    def close(self) -> None:
        """Closes the file and lets other programs have it."""
        with suppress(OSError):  # the disk is full: `update` said so
            self._file.close()
        self._lock.close()

    def _replace(self, lines: Sequence[dict[str, Any]]) -> None:
        data = b"".join(map(_line, lines))
        with whole_file(self.path, len(data)) as file:
            file.write(data)


def _record(keep: int, turns: Sequence[Turn], left: int) -> dict[str, Any]:
    record = {"keep": keep, "turns": [turn.as_json() for turn in turns]}
    return record | {"left": left} if left else record


def _line(record: dict[str, Any]) -> bytes:
    # ASCII, so that a lone surrogate from a model or a terminal cannot fail to be written.
    return json.dumps(record).encode("ascii") + b"\n"


def read(path: Path) -> tuple[str, list[Turn], int, bool]:
    """The model's name, the turns, how many of them left the context, and whether the last line was
    cut off. Raises TranscriptError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TranscriptError(f"{path} is larger than {_MAX_BYTES >> 20} MiB")
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TranscriptError(f"{path} cannot be read: {error.strerror}") from error
    records = _parsed(path, lines)
    head = next(records, {})
    if (
        head.get("format") != _FORMAT
        or head.get("version") != _VERSION
        or not isinstance(head.get("model"), str)
    ):
        raise TranscriptError(f"{path} is not the journal of a chat that this ggext reads")
    turns: list[Turn] = []
    left = 0
    for record in records:
        keep, new, left = record.get("keep"), record.get("turns"), record.get("left", 0)
        malformed = TranscriptError(
            f"{path}: a line is malformed; move the file away to start over"
        )
        if not (isinstance(keep, int) and 0 <= keep <= len(turns) and isinstance(new, list)):
            raise malformed
        if not (isinstance(left, int) and 0 <= left <= keep + len(new)):
            raise malformed
        turns = [*turns[:keep], *checked_turns(path, new, keep)]
    return head["model"], turns, left, bool(rest)


def _parsed(path: Path, lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TranscriptError(
                f"{path}: line {number} is damaged; move the file away to start over"
            ) from error
        yield record if isinstance(record, dict) else {}


def _locked(path: Path) -> IO[bytes]:
    import fcntl

    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise OpenElsewhereError(
            f"the chat in {path.parent} is open in another ggext; leave that one first"
        ) from None
    return file


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: {error.strerror or error}; the chat is not being kept"
        ) from None
