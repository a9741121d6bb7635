"""`ggext convert` as a user calls it."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from ggext.cli import main
from ggext.gguf.open import read_gguf
from ggext.gguf.reader import GgufFile


def ggext(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def bake(*arguments: object) -> GgufFile:
    result = ggext("convert", *arguments)
    assert result.exit_code == 0, result.output
    return read_gguf(Path(str(arguments[1])))


def assert_refused(result: Result, message: str, code: int = 1) -> None:
    """One line on standard error, the exit code, and no traceback."""
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stderr.startswith("ggext: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
