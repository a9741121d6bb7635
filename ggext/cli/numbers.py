"""Numbers as people type them: ``16k`` tokens, ``4G`` of memory, a factor."""

from __future__ import annotations

import re
from typing import Any

import click

from ggext.arguments import parse_tokens

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmgt])(i?b)?", re.ASCII)
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", re.ASCII)
_SECONDS = {"": 60.0, "s": 1.0, "m": 60.0, "h": 3600.0}
#: Positions are whole numbers of 32 bits with a sign.
MOST_TOKENS = 1 << 30


class Number(click.ParamType[float]):
    """A finite float; ``nan`` and ``inf`` are usage errors, not numbers."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not abs(number) < float("inf"):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class Tokens(click.ParamType["int | str"]):
    """A count of tokens, from ``least`` to ``most``; the word ``auto`` too where ``allow_auto`` is
    set."""

    name = "tokens"

    def __init__(
        self, least: int = 1, most: int = MOST_TOKENS, *, allow_auto: bool = False
    ) -> None:
        self.least = least
        self.most = most
        self.allow_auto = allow_auto

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if isinstance(value, int):
            return value
        if self.allow_auto and value == "auto":
            return "auto"
        try:
            count = parse_tokens(value)
        except ValueError as error:
            word = ", or auto" if self.allow_auto else ""
            self.fail(f"{error}{word}", param, ctx)
        if not self.least <= count <= self.most:
            self.fail(
                f"{value} is {count:,} tokens; from {self.least:,} to {self.most:,} are possible",
                param,
                ctx,
            )
        return count


class Size(click.ParamType[int]):
    """Bytes: K, M, G and T are powers of 1000 (as in llama.cpp's gguf-split), KiB, MiB, GiB and TiB
    of 1024."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        match = _BYTES.fullmatch(value.replace(" ", "").lower())
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a size such as 4G, 500M or 1.5GiB", param, ctx)
        unit: int = (1024 if match[3] == "ib" else 1000) ** _POWERS[match[2]]
        return round(float(match[1]) * unit)


class Seconds(click.ParamType[float]):
    """A time such as 90s, 10m or 2h; a bare number is minutes."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        match = _TIME.fullmatch(str(value).lower())
        if match is None:
            self.fail(f"{value!r} is no time, such as 90s, 10m or 2h", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


NUMBER = Number()
SECONDS = Seconds()
TOKENS = Tokens()
TOKENS_OR_AUTO = Tokens(allow_auto=True)
SIZE = Size()
