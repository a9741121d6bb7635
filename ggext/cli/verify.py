"""``ggext verify``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggext.cli.convert import NUMBER

if TYPE_CHECKING:
    from ggext.verify import Report


@click.command(short_help="Prove in numbers that a file does what was asked.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), metavar="CHECKPOINT",
              help="The checkpoint it was made from: logits are compared with transformers'.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(2), metavar="N", help="Tokens to evaluate for the logits "
              "[the context, at most 2048].")  # fmt: skip
@click.option("--tolerance", type=NUMBER, metavar="KL", help="Mean KL in nats that passes [by weight type].")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(file: Path, reference: Path | None, tokens: int | None, tolerance: float | None, as_json: bool) -> None:
    """Hold FILE to the recipe in it, or to the checkpoint that it was made from.

    Exit code 1 when a number is outside its tolerance.
    """
    from ggext.verify import verify as run

    report = run(file, reference, tokens, tolerance, progress=lambda line: click.echo(line, err=True))
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else as_table(report))
    sys.exit(0 if report.passed else 1)


def as_table(report: Report) -> str:
    rows = [("level", "quantity", "value", "at most", "", "")]
    for c in report.checks:
        verdict = "ok" if c.passed else "WRONG"
        rows.append((c.level, c.quantity, f"{c.value:.2g}", f"{c.tolerance:.2g}", verdict, c.detail))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [f"{report.file}: {report.scaling['method']}, context {report.context:,}, held to the {report.wanted_from}"]
    lines += ["  ".join([*map(str.ljust, row, widths), row[5]]).rstrip() for row in rows]
    lines += [f"note: {note}" for note in report.notes]
    lines.append("all within tolerance" if report.passed else "NOT within tolerance")
    return "\n".join(lines)
