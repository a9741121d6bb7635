"""What to say of an error that is ggext's own: one line, and a file with the rest."""

from __future__ import annotations

import platform
import sys
import traceback
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from ggext._version import __version__
from ggext.errors import OutputError, first_line
from ggext.folders import state_folder

_PACKAGES = ("llama-cpp-python", "numpy", "rich", "prompt_toolkit", "click")
_NAME = "last-error.txt"


def in_one_line(error: BaseException) -> str:
    """What happened and where, and the file that holds the traceback, which this writes."""
    words = " ".join(first_line(error).split())
    what = (
        type(error).__name__ if words == type(error).__name__ else _named(error, words)
    )
    path = _written(error)
    where = "--debug shows the traceback" if path is None else f"a report is in {path}"
    return f"this is a fault of ggext: {what:.300}; {where}"


def _named(error: BaseException, words: str) -> str:
    return f"{type(error).__name__}: {words}"


def _written(error: BaseException) -> Path | None:
    """The report: versions and the traceback, nothing that was said. None where nothing can be
    written."""
    text = "\n".join(
        [
            f"ggext {__version__}, Python {sys.version.split()[0]}, {platform.platform()}",
            *_versions(),
            "",
            *traceback.format_exception(error),
        ]
    )
    try:
        path = state_folder() / _NAME
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(text, "utf-8", "backslashreplace")
    except (OSError, OutputError):
        return None
    return path


def _versions() -> list[str]:
    lines = []
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            lines.append(f"{name} {metadata.version(name)}")
    return lines
