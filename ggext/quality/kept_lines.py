"""A file of JSON lines that grows while something is measured, so that a run can go on from it.

The first line says what the run is of, each further one is a result, written down at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ggext.errors import OutputError, UsageError


class KeptLines:
    """``path`` None: nothing is kept. ``header`` must be the same for results to be of one run;
    ``what`` names such a file in messages.

    ``take`` is given each line that an earlier run left, and raises ValueError, TypeError or
    KeyError for one that is none. Raises UsageError for a file of something else, or of another
    run; nothing is changed then.
    """

    def __init__(
        self,
        path: Path | None,
        header: Mapping[str, Any],
        what: str,
        take: Callable[[dict[str, Any]], None],
    ) -> None:
        self.path = path
        self._what = what
        self._file: IO[bytes] | None = None
        if path is None:
            return
        if path.is_dir():
            raise UsageError(f"{path} is a folder: name a file for the partial run")
        end = 0
        if path.exists() and path.stat().st_size > 0:
            end = self._read(path, header, take)
        try:
            self._file = path.open("ab")
            self._file.truncate(end)  # a line that a crash cut off
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error.strerror or error}"
            ) from None
        if end == 0:
            self.add(header)

    def add(self, values: Mapping[str, Any]) -> None:
        """Keeps a line. Raises OutputError."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(values, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror or error}"
            ) from None

    def close(self) -> None:
        """Ends writing; further calls do nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(
        self,
        path: Path,
        header: Mapping[str, Any],
        take: Callable[[dict[str, Any]], None],
    ) -> int:
        """Reads what is whole; the bytes of it."""
        end = 0
        for number, line in enumerate(_lines(path), 1):
            if not line.endswith(b"\n"):
                break
            try:
                values = json.loads(line)
                if number == 1:
                    _check_header(path, values, header)
                else:
                    take(values)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                what = f"no {self._what}" if number == 1 else "damaged"
                raise UsageError(
                    f"{path} is {what} (line {number}): name another file; it is left as it is"
                ) from None
            end += len(line)
        if not end:
            raise UsageError(
                f"{path} is no {self._what} (line 1): name another file; it is left as it is"
            )
        return end


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None


def _check_header(path: Path, values: Any, header: Mapping[str, Any]) -> None:
    if values["format"] != header["format"]:
        raise ValueError("another format")
    for name in header.keys() | values.keys():
        if values.get(name) != header.get(name):
            raise UsageError(
                f"{path} is a run with {name} {values.get(name)!r}, not {header.get(name)!r}: go "
                "on with the same, or name another file"
            )
