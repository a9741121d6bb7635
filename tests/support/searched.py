"""`ggext search` on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner

from ggext.cli import main

SMALL = {"evaluations": 4, "training": 1, "held_out": 2, "threads": 1}


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["search", *map(str, arguments)])
