"""``ggext rope``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggext.cli import convert_options
from ggext.cli.groups import GroupedCommand, group
from ggext.cli.models import MODEL
from ggext.cli.scaling import asked_scaling

if TYPE_CHECKING:
    from ggext.emit import Program

_PROGRAMS = ("transformers", "vllm", "sglang", "mlx")
_scaling = group("Scaling", *convert_options.BY_FACTOR, *convert_options.PARAMETERS)
_EXAMPLES = (
    (
        "ggext rope Qwen/Qwen3-0.6B --yarn 4 --emit vllm",
        "the command that serves it so",
    ),
    (
        "ggext rope ./model --yarn 4 --emit transformers",
        "what to write into its config.json",
    ),
)


@click.command(
    cls=GroupedCommand,
    examples=_EXAMPLES,
    short_help="Say a scaling in the words of another program.",
)
@click.argument("model", type=MODEL)
@click.option(
    "--emit",
    "program",
    type=click.Choice(_PROGRAMS),
    required=True,
    help="The program that is to run or to train it.",
)
@_scaling
def rope(model: Path, program: Program, **options: Any) -> None:
    """Print the configuration by which another program runs or trains MODEL (a checkpoint, or a
    GGUF file for its numbers) with a scaling, and what of it that program does not honour.
    """
    from ggext.emit import emit

    scaling = asked_scaling(options)
    if scaling is None:
        raise click.UsageError("name a scaling, such as --yarn 4")
    emitted = emit(model, scaling, program, options["target_context"])
    click.echo(emitted.text)
    for note in emitted.notes:
        click.echo(f"note: {note}", err=True)
