"""Opens a GGUF file: ends a change in place that a crash interrupted, then reads the header."""

from __future__ import annotations

import mmap
import os
from dataclasses import replace
from pathlib import Path

from ggext.errors import GgufError
from ggext.gguf.plain_files import NotPlainError, open_plain
from ggext.gguf.reader import GgufFile, parse_header


def read_gguf(path: str | Path, *, any_kind: bool = False) -> GgufFile:
    """Read and check a header; ``any_kind``: also of files that are no models. Raises ``GgufError``
    (one line, with the byte offset) for a file that is not GGUF, is truncated, or contradicts
    itself; ``OSError`` becomes it too. A change in place that a crash interrupted is taken back
    first."""
    path = Path(path)
    _end_interrupted_change(path)
    try:
        if path.is_dir():
            raise GgufError(f"{path} is a folder; name the .gguf file in it")
        with os.fdopen(open_plain(path), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise GgufError(f"{path} is empty; it is not a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return replace(
                    parse_header(path, data, any_kind=any_kind),
                    mtime_ns=status.st_mtime_ns,
                )
    except FileNotFoundError:
        named = path.suffix.lower() != ".gguf"
        remedy = (
            f" (if it names a model: ggext convert {path} makes a .gguf file of it)"
            if named
            else ""
        )
        raise GgufError(f"{path}: No such file; check the path{remedy}") from None
    except NotPlainError as error:
        raise GgufError(f"{path} {error.strerror}; check the path") from None
    except OSError as error:
        raise GgufError(f"{path}: {error.strerror or error}; check the path") from None


def _end_interrupted_change(path: Path) -> None:
    from ggext.gguf.journal import undo_path

    if os.path.lexists(undo_path(path.resolve())):
        from ggext.gguf.inplace import repair

        done = repair(path)
        if done:
            import logging

            logging.getLogger("ggext").warning("%s: %s", path, done)
