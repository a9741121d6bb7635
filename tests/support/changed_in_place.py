"""`ggext convert --in-place` as a user calls it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from ggext.cli import main

FACTORS = np.linspace(1, 8, 8, dtype="f4")


def ggext(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def told(*arguments: object) -> str:
    result = ggext(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = ggext(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert result.stderr.startswith("ggext: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def logits(path: Path) -> Any:
    from ggext.runtime.engine import Session
    from ggext.runtime.model import Model

    with Model.open(path) as loaded, Session(loaded) as session:
        return session.logits(list(range(3, 63)))


REQUESTS = {
    "yarn": ["--yarn", "4", "--encoding", "keys"],
    "linear": ["--linear", "2"],
    "ntk": ["--ntk", "4"],
    "none": ["--rope", "none"],
    "llama3": ["--llama3", "4"],
    "yarn by tensor": ["--yarn", "4", "--beta-slow", "0.1", "--encoding", "tensor"],
}
