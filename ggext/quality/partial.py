"""What was measured, written down at once, so that a run that ends early can go on.

A file of JSON lines: the first says what the run is of, each further one is one item.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ggext.errors import OutputError, UsageError
from ggext.quality.items import Item, Result, as_json, from_json, parsed_key
from ggext.quality.settings import EvalOptions
from ggext.quality.texts import read_text

_FORMAT = "ggext eval, partial run 1"

Results = dict[tuple[str, Item], Result]


def run_header(options: EvalOptions) -> dict[str, Any]:
    """What must be the same for results to be of one run; lengths and trials may grow."""
    contents = (read_text(path).encode() for path in options.texts)
    digests = [hashlib.sha256(content).hexdigest()[:16] for content in contents]
    if options.questions is not None:
        content = read_text(options.questions).encode()
        digests.append(hashlib.sha256(content).hexdigest()[:16])
    return {
        "format": _FORMAT,
        "seed": options.seed,
        "form": options.form,
        "protocol": options.protocol,
        "texts": digests,
    } | ({"marks": True} if options.marks else {})


class PartialRun:
    """The file of a run that may end early; None: nothing is kept.

    ``results``: what an earlier run left in it. Raises UsageError for a file that is none, or of
    another run; nothing is changed then.
    """

    def __init__(self, path: Path | None, options: EvalOptions) -> None:
        self.path = path
        self.results: Results = {}
        self._file: IO[bytes] | None = None
        if path is None:
            return
        header = run_header(options)
        end = 0
        if path.exists() and path.stat().st_size > 0:
            end = self._read(path, header)
        try:
            self._file = path.open("ab")
            self._file.truncate(end)  # a line that a crash cut off
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None
        if end == 0:
            self._write(header)

    def add(self, setting: str, item: Item, result: Result) -> None:
        """Keeps a result."""
        self.results[setting, item] = result
        self._write({"setting": setting, "item": item.key, "result": as_json(result)})

    def close(self) -> None:
        """Ends writing; further calls do nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, values: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(values, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}") from None

    def _read(self, path: Path, header: dict[str, Any]) -> int:
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
                    item = parsed_key(values["item"])
                    result = from_json(item, values["result"])
                    self.results[str(values["setting"]), item] = result
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                what = "no partial run of ggext eval" if number == 1 else "damaged"
                raise UsageError(
                    f"{path} is {what} (line {number}): name another file; it is left as it is"
                ) from None
            end += len(line)
        if not end:
            raise UsageError(
                f"{path} is no partial run of ggext eval (line 1): name another file; it is left "
                "as it is"
            )
        return end


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None


def _check_header(path: Path, values: Any, header: dict[str, Any]) -> None:
    if values["format"] != _FORMAT:
        raise ValueError("another format")
    for name, value in header.items():
        if values.get(name) != value:
            raise UsageError(
                f"{path} is a run with {name} {values.get(name)!r}, not {value!r}: go on with the "
                "same, or name another file"
            )
