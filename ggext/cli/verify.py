"""``ggext verify``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggext.cli.numbers import NUMBER, Tokens

if TYPE_CHECKING:
    from ggext.proof.report import Check, Report


@click.command(short_help="Prove in numbers that a file does what was asked.")
@click.argument("file", type=click.Path(path_type=Path))
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
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a reference on the hub.")
@click.option(
    "--level",
    "levels",
    metavar="NAME,...",
    help="Only these of table, kernel, graph, shift, logits.",
)
@click.option(
    "--require-shift-safe", is_flag=True, help="Fail a file whose context must not be rolled."
)
@click.option(
    "--tokens",
    type=Tokens(2),
    metavar="N",
    help="Tokens to evaluate for the logits [the context, at most 2048].",
)
@click.option(
    "--tolerance", type=NUMBER, metavar="KL", help="Mean KL in nats that passes [by weight type]."
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
    revision: str | None,
    levels: str | None,
    as_json: bool,
    plot: Path | None,
    **options: Any,
) -> None:
    """Hold FILE to the recipe in it, or to the checkpoint that it was made from.

    Exit code 1 when a number is outside its tolerance.
    """
    from ggext.checkpoint.named import named_model
    from ggext.cli.plot import check_plot, plot_report
    from ggext.verify import verify as run

    if plot is not None:
        check_plot(plot, "verify --plot")
    names = None if levels is None else [name.strip() for name in levels.split(",")]
    if reference is not None:
        reference = named_model(reference, revision, show_progress=True)
    report = run(
        file, reference, progress=lambda line: click.echo(line, err=True), levels=names, **options
    )
    if plot is not None:
        plot_report(report, plot)
        click.echo(f"wrote {plot}", err=True)
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else as_table(report))
    sys.exit(0 if report.passed else 1)


def as_table(report: Report) -> str:
    head = ("level", "quantity", "value", "at most", "", "")
    rows = [
        (c.level, c.quantity, f"{c.value:.2g}", f"{c.tolerance:.2g}", _verdict(c), c.detail)
        for c in report.checks
    ]
    lines = [
        (
            f"{report.file}: {report.scaling['method']}, context {report.context:,}, held to the "
            f"{report.wanted_from}"
        )
    ]
    lines += _columns([head, *rows])
    lines += [f"why ({c.level}, {c.quantity}): {c.why}" for c in report.checks if c.why]
    lines += _kernels(report)
    lines += [f"note: {note}" for note in report.notes]
    rolling = ", as long as nobody rolls its context" if report.shift_safe is False else ""
    lines.append(f"all within tolerance{rolling}" if report.passed else "NOT within tolerance")
    return "\n".join(lines)


def _verdict(check: Check) -> str:
    if check.passed:
        return "ok"
    return "WRONG" if check.required else "UNSAFE"


def _kernels(report: Report) -> list[str]:
    """A line for each position of the fixed list, a column for each kernel."""
    from ggext.proof.kernels import told_positions

    names = list(dict.fromkeys(row.kernel for row in report.kernels))
    found = {(row.kernel, row.position): row for row in report.kernels}
    rows: list[tuple[str, ...]] = [("position", *names, "")]
    for position in told_positions(report.context).tolist() if names else []:
        measured = [found[name, position] for name in names]
        worst = max(measured, key=lambda row: row.error)
        outside = "" if worst.inside else "beyond the context; "
        errors = [f"{row.error:.1e}" for row in measured]
        rows.append((f"{position:,}", *errors, outside + worst.meaning))
    return ["", "worst |Δ| of cos and sin / gain, by kernel", *_columns(rows), ""] if names else []


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The rows aligned; the last column is as long as it is."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows]
