"""Numbers as people type them on the command line."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ggext.cli import main
from ggext.cli.numbers import SIZE, TOKENS, TOKENS_OR_AUTO, Tokens


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("16384", 16384),
        ("16,384", 16384),
        ("16_384", 16384),
        ("16k", 16384),
        ("16K", 16384),
        (" 128K ", 131072),
        ("1.5k", 1536),
        ("1M", 1 << 20),
        ("1,048,576", 1 << 20),
    ],
)
def test_tokens(text: str, count: int) -> None:
    assert TOKENS.convert(text, None, None) == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16.384", "is 16.384 tokens, not a whole number"),
        ("1,6384", "is not a number of tokens such as 16384, 16,384, 16k or 1M"),
        ("0", "0 is 0 tokens; from 1 to 1,073,741,824 are possible"),
        ("-4k", "is not a number of tokens"),
        ("16kb", "is not a number of tokens"),
        ("4096M", "from 1 to 1,073,741,824 are possible"),
        ("nan", "is not a number of tokens"),
        ("auto", "is not a number of tokens"),
        ("\u0663", "is not a number of tokens"),
    ],
)
def test_what_is_no_count_of_tokens(text: str, message: str) -> None:
    with pytest.raises(click.BadParameter, match=message):
        TOKENS.convert(text, None, None)


def test_auto_is_a_count_only_where_it_means_something() -> None:
    assert TOKENS_OR_AUTO.convert("auto", None, None) == "auto"
    assert TOKENS_OR_AUTO.convert("32k", None, None) == 32768
    with pytest.raises(click.BadParameter, match="from 2 to 1,000 are possible"):
        Tokens(2, 1000).convert("1", None, None)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4G", 4 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5GiB", 3 << 29),
        ("64 k", 64000),
        ("1T", 10**12),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert SIZE.convert(text, None, None) == count


@pytest.mark.parametrize("text", ["4", "4X", "0G", "G", "-1G", "1e3M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size such as 4G"):
        SIZE.convert(text, None, None)


def test_every_command_takes_them(tmp_path: Path) -> None:
    """newcomer.md, C: refused everywhere, though ggext prints 16,384 itself."""
    out = str(tmp_path / "out.gguf")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    assert "→ 1,024 tokens" in run("convert", "demo", out, "--target-context", "1k")
    assert "context 512 tokens" in run("plan", out, "--context", "0.5k")
    assert "context 1,024 tokens" in run("plan", out, "--ctx", "1,024")
    assert "table   ok" in run("verify", out, "--level", "table", "--tokens", "1k")
