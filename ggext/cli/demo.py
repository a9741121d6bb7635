"""``ggext demo``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggext.cli.numbers import Tokens

if TYPE_CHECKING:
    from ggext.demo import DemoResult

_NAMES = {"none": "no scaling", "linear": "linear", "ntk": "NTK-aware", "yarn": "YaRN"}


@click.command(short_help="Bake, prove and measure the embedded model.")
@click.option(
    "--texts",
    type=click.IntRange(1, 100_000),
    default=40,
    show_default=True,
    metavar="N",
    help="Texts read for each figure, 5 questions each.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Which texts are made."
)
@click.option(
    "--text",
    type=Tokens(most=1_000_000),
    metavar="N",
    help="Only print a text of N tokens, to chat about with the embedded model.",
)
def demo(texts: int, seed: int, text: int | None) -> None:
    """Show what context extension does: a small model, trained on 256 tokens, asked at up to 2048.

    Everything printed is measured now, on this machine, through llama.cpp.
    """
    from ggext.demo import run, sample_text

    if text is not None:
        click.echo(sample_text(text, seed))
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ggext-demo-") as folder:
        result = run(
            Path(folder), texts, seed, progress=lambda line: click.echo(f"  {line}", err=True)
        )
    click.echo(report(result))
    click.echo(f"measured in {time.perf_counter() - start:.0f} s")


def report(result: DemoResult) -> str:
    from ggext.demo import LENGTHS, METHODS, TRAINED

    lines = [
        (
            f"The embedded model was trained on {TRAINED} tokens and reads a text that tells who "
            "keeps what where."
        ),
        f"{result.files} files were baked and each was verified against its recipe.",
        "",
        (
            f"Answers that are exact, greedy, {result.recalls[0].asked} questions a figure, "
            f"factor = length / {TRAINED}:"
        ),
        _row("tokens", [f"{length:,}" for length in LENGTHS]),
    ]
    lines += [
        _row(_NAMES[method], [f"{result.recall(method, length):.2f}" for length in LENGTHS])
        for method in METHODS
    ]
    steps = len(result.perplexities[0].values)
    lines += [
        "",
        (
            f"Perplexity by position in texts of {LENGTHS[-1]:,} tokens, factor "
            f"{LENGTHS[-1] // TRAINED}:"
        ),
    ]
    lines.append(_row("up to token", [f"{TRAINED * (i + 1):,}" for i in range(steps)]))
    lines += [
        _row(_NAMES[p.method], [f"{value:.1f}" for value in p.values]) for p in result.perplexities
    ]
    example = result.example
    lines += [
        "",
        f"Asked after {4 * TRAINED:,} tokens: {example.question} (the text says: {example.right})",
    ]
    lines += [f"  {_NAMES[method]:12} {answer}" for method, answer in example.answers.items()]
    return "\n".join([*lines, ""])


def _row(name: str, cells: list[str]) -> str:
    return f"  {name:12}" + "".join(cell.rjust(9) for cell in cells)
