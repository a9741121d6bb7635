"""``ggext verify``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ggext.cli.models import model_file
from ggext.cli.numbers import NUMBER, Tokens
from ggext.cli.process import note
from ggext.cli.progress import announced


def _explain(ctx: click.Context, _: click.Parameter, is_set: bool) -> None:
    if not is_set:
        return
    from importlib.resources import files

    click.echo_via_pager(
        files("ggext.data").joinpath("glossary.md").read_text("utf-8").rstrip()
    )
    ctx.exit()


@click.command(short_help="Prove in numbers that a file does what was asked.")
@model_file
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help=(
        "The checkpoint it was made from (a folder, or an id on the hub): logits are "
        "compared with "
        "transformers'."
    ),
)
@click.option(
    "--revision", metavar="REV", help="Branch, tag or commit of a reference on the hub."
)
@click.option(
    "--level",
    "levels",
    metavar="NAME,...",
    help="Only these of table, kernel, graph, shift, logits.",
)
@click.option(
    "--require-shift-safe",
    is_flag=True,
    help="Fail a file whose context must not be rolled.",
)
@click.option(
    "--tokens",
    type=Tokens(2),
    metavar="N",
    help="Tokens to evaluate for the logits [the context, at most 2048].",
)
@click.option(
    "--tolerance",
    type=NUMBER,
    metavar="KL",
    help="Mean KL in nats that passes [by weight type].",
)
@click.option(
    "--details", is_flag=True, help="Every number in tables, wider than 80 columns."
)
@click.option(
    "--explain",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_explain,
    help="Print what the words mean.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.png|svg",
    help="Draw the frequencies and the errors of the kernels.",
)
def verify(
    file: Path,
    reference: Path | None,
    levels: str | None,
    details: bool,
    as_json: bool,
    plot: Path | None,
    **options: Any,
) -> None:
    """Hold FILE to the recipe in it, or to the checkpoint that it was made from; a file from
    elsewhere to what its own keys mean and to what its model's authors publish.

    The last line is the verdict, and the exit code is 0 if it is good and 1 if it is not.
    """
    from ggext.checkpoint.named import named_model
    from ggext.cli.plot import check_plot, plot_report
    from ggext.cli.verify_report import in_detail, in_short
    from ggext.verify import LEVELS
    from ggext.verify import verify as run

    if plot is not None:
        check_plot(plot, "verify --plot")
    names = None if levels is None else [name.strip() for name in levels.split(",")]
    revision = options.pop("revision")
    if reference is not None:
        reference = named_model(reference, revision, show_progress=True)
    with announced(len(names or LEVELS), file.name) as progress:
        report = run(file, reference, progress=progress, levels=names, **options)
    if plot is not None:
        plot_report(report, plot)
        note(f"wrote {plot}")
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        text = in_detail(report) if details else in_short(report)
        click.echo(text)
    status = 0 if report.passed else 1
    sys.exit(status)
