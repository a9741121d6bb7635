"""A model on the command line: a path, or a name that ``ggext list`` prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ggext.errors import UsageError


class Model(click.ParamType[Path]):
    """The file that is meant. A path that exists is itself; ids of checkpoints on the hub are left
    to the command, and ``demo`` to one that takes checkpoints."""

    name = "model"

    def __init__(self, *, takes_checkpoints: bool) -> None:
        self._takes_checkpoints = takes_checkpoints

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        path = Path(value)
        if path.exists():
            return path
        if str(value) == "demo":
            if self._takes_checkpoints:
                return path
            raise UsageError(
                "demo is a checkpoint; ggext convert demo makes a .gguf file of it"
            )
        from ggext.checkpoint import hub
        from ggext.checkpoint.stores import find_stored

        stored = find_stored(str(value), Path())
        if stored is not None and stored.is_gguf:
            return stored.path
        repository, colon, _ = str(value).partition(":")
        if colon and hub.is_hub_name(repository):
            self.fail(
                f"{value} is not on this machine; ggext pull {value} fetches it",
                param,
                ctx,
            )
        return path


MODEL = Model(takes_checkpoints=True)
GGUF = Model(takes_checkpoints=False)

_GIVEN = "ggext.cli.models"


def model_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument FILE, or ``-m FILE`` as llama.cpp's programs take it."""
    argument = click.argument("file", type=GGUF, required=False, callback=_one_of_both)
    option = click.option(
        "-m",
        "--model",
        "by_option",
        type=GGUF,
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_remember,
        help="FILE, as llama.cpp's programs take it.",
    )
    return argument(option(command))


def _remember(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    ctx.meta[_GIVEN] = value


def _one_of_both(
    ctx: click.Context, parameter: click.Parameter, value: Path | None
) -> Path:
    by_option: Path | None = ctx.meta.get(_GIVEN)
    if value is not None and by_option is not None:
        raise click.UsageError("FILE and -m FILE name two models; give one", ctx)
    path = value or by_option
    if path is None:
        raise click.MissingParameter(ctx=ctx, param=parameter, param_hint="'FILE'")
    return path
