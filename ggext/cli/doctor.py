"""``ggext doctor``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from ggext.cli.process import note

if TYPE_CHECKING:
    from ggext.doctor import Finding, Report

_MARKS = {"ok": "ok", "missing": "missing", "wrong": "WRONG"}


@click.command(
    short_help="Say what is installed, what is missing, and whether it works."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--measure",
    is_flag=True,
    help="Measure how texts are read fastest here, a minute or two, and keep it.",
)
def doctor(as_json: bool, measure: bool) -> None:
    """Look at the versions, the backends in use and what is missing, and run the self-tests.

    The exit code is 0 if nothing is wrong and 1 if something is; what is only missing is not wrong.
    """
    from ggext.doctor import examine

    report = examine(progress=lambda line: note(f"  {line}"), measure=measure)
    text = json.dumps(report.as_dict(), indent=2) if as_json else in_words(report)
    click.echo(text)
    sys.exit(not report.healthy)


def in_words(report: Report) -> str:
    width = max(len(finding.name) for finding in report.findings)
    lines: list[str] = []
    part = ""
    for finding in report.findings:
        if finding.part != part:
            part = finding.part
            lines += ["", part] if lines else [part]
        lines += _lines(finding, width)
    wrong = sum(finding.state == "wrong" for finding in report.findings)
    return "\n".join(
        [*lines, "", f"{wrong} wrong, see above" if wrong else "nothing is wrong"]
    )


def _lines(finding: Finding, width: int) -> list[str]:
    lines = [
        f"  {_MARKS[finding.state]:8}{finding.name:{width}}  {finding.value}".rstrip()
    ]
    if finding.remedy:
        lines.append(" " * (width + 12) + finding.remedy)
    return lines
