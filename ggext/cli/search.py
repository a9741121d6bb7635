"""``ggext search``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggext.cli import measuring
from ggext.cli.eval import check_folder, command_line, write_text
from ggext.cli.eval_table import duration
from ggext.cli.models import model_file
from ggext.cli.numbers import SECONDS, TOKENS
from ggext.cli.process import interrupt_calls, note

if TYPE_CHECKING:
    from ggext.search import Search, SearchResult
    from ggext.search.accept import Verdict
    from ggext.search.run import Progress


@click.command(
    short_help="Look for a table that is better than YaRN's at its defaults."
)
@model_file
@click.option(
    "-c",
    "--target-context",
    type=TOKENS,
    required=True,
    metavar="N",
    help="Tokens that the file is to read, more than it was trained on.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The file to write.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Your own documents, or a folder of them: the loss on their key tokens is searched on, in "
    "place of needles. May be repeated.",
)
@click.option(
    "--budget",
    default="1h",
    show_default=True,
    type=SECONDS,
    metavar="TIME",
    help="Time that it may take; it picks as many tables and texts as fit.",
)
@click.option(
    "--evaluations",
    type=click.IntRange(2, 40),
    metavar="N",
    help="Tables to measure, at most 40.",
)
@click.option(
    "--training", type=click.IntRange(1), metavar="N", help="Texts to search on."
)
@click.option(
    "--held-out", type=click.IntRange(2), metavar="N", help="Texts to judge on."
)
@measuring.form
@click.option(
    "--encoding",
    type=click.Choice(["auto", "tensor", "folded", "runtime"]),
    default="auto",
    show_default=True,
    help="How the table is written, as in ggext convert.",
)
@measuring.seed
@measuring.threads
@measuring.gpu_layers
@click.option(
    "--resume",
    "partial",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Keep every loss in this file at once, and go on from it where it exists.",
)
@click.option("--force", is_flag=True, help="Replace an output that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@measuring.card
def search(
    file: Path,
    partial: Path | None,
    as_json: bool,
    card: Path | None,
    encoding: Any,
    **given: Any,
) -> None:
    """Look for a RoPE table that serves FILE better than YaRN's at N tokens.

    Four numbers are searched by the loss on answers that stand far back in long texts. A file is
    written only where texts that the search had not seen say that it is better, and short texts
    that it costs nothing; else YaRN stays, which is no error.
    """
    from ggext.search import Search, SearchOptions

    encoding = None if encoding == "auto" else encoding
    options = SearchOptions(encoding=encoding, **given)
    if card is not None:
        check_folder(card)
    _paint("measuring how fast this file is read")
    with Search(file, options, partial) as running:
        _paint("")
        note(_cost(running))
        with interrupt_calls(running.stop):
            running.run(_show)
            result = running.result()
            if result.accepted:
                _paint("writing and verifying")
                result = running.bake()
        _paint("")
        text = json.dumps(result.as_dict(), indent=2) if as_json else as_table(result)
        click.echo(text)
        if result.out is not None and not as_json:
            _say_written(running, result.out)
    if card is not None and not result.interrupted:
        from ggext.search.card import card as section

        write_text(card, section(result, command_line()))
        note(f"wrote {card}")
    if result.interrupted:
        kept = f"; --resume {partial} goes on from here" if partial else ""
        note(f"ggext: stopped before the end{kept}")
        sys.exit(130)


def as_table(result: SearchResult) -> str:
    """YaRN's numbers next to those of the best table, and the verdict."""
    factor = result.target_context / result.trained_context
    trained = result.trained_context
    target = result.target_context
    lines = [f"{result.file}: {trained:,} → {target:,} tokens, ×{factor:g}"]
    points = (result.yarn, result.best)
    scalings = (result.yarn_scaling, result.scaling)
    rows = [
        ("", "YaRN", "best table"),
        ("factor", *(f"{scaling.factor:.5g}" for scaling in scalings)),
        (
            "attention factor",
            *(f"{scaling.attention_factor:.4f}" for scaling in scalings),
        ),
        ("blended pairs", *(f"{point.first} to {point.last}" for point in points)),
    ]
    verdict = result.verdict
    if verdict is not None:
        losses = (f"{verdict.yarn_loss:.4f}", f"{verdict.loss:.4f}")
        rows.append((f"loss, {result.objective}", *losses))
    lines += [f"  {name:18}{yarn:>12}{best:>14}" for name, yarn, best in rows]
    if verdict is not None:
        lines += _differences(verdict)
    lines += [f"note: {note}" for note in result.notes]
    if result.accepted:
        return "\n".join(
            [*lines, f"better than YaRN, after {len(result.evaluations)} tables"]
        )
    if result.interrupted:
        return "\n".join(lines)
    return "\n".join([*lines, f"YaRN stays: {result.reason}"])


def _differences(verdict: Verdict) -> list[str]:
    from ggext.search.accept import MOST_SHORT_RISE

    gap = verdict.difference
    units = verdict.difference.units
    interval = f"{gap.value:+.4f}, 95 % {gap.low:+.4f} to {gap.high:+.4f}"
    return [
        f"  difference {interval}, on {units} texts that the search had not seen",
        f"  short texts {100 * verdict.short_rise:+.2f} % (at most +{100 * MOST_SHORT_RISE:g} %)",
    ]


def _say_written(running: Search, out: Path) -> None:
    from ggext.cli.convert_report import ready

    encoding = running.conversion.encoding
    name = encoding.name if encoding else ""
    click.echo(f"wrote {out} ({out.stat().st_size:,} bytes), encoding {name}, verified")
    for line in ready(running.conversion):
        click.echo(line)


def _cost(running: Search) -> str:
    plan = running.plan
    line = (
        f"{plan.tokens:,} tokens, about {duration(plan.seconds)}: at most {plan.evaluations} "
        f"tables on up to {plan.training} texts, the best one judged on {plan.held_out} others"
    )
    return f"{line}; {running.known} losses are there" if running.known else line


def _show(progress: Progress) -> None:
    remaining = duration(progress.seconds_left)
    _paint(f"{progress.what} · {remaining} left · {progress.done} losses measured")


def _paint(line: str) -> None:
    """One line that is painted over, where a terminal watches."""
    if sys.stderr.isatty():
        note(f"\r\033[K{line[:100]}", end=False)
