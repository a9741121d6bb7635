"""``ggext demo``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggext.cli.numbers import Tokens

if TYPE_CHECKING:
    from ggext.cli.progress import Steps
    from ggext.demo import DemoResult, Recall, Watcher
    from ggext.rope.scaling import Method

_NAMES = {"none": "no scaling", "linear": "linear", "ntk": "NTK-aware", "yarn": "YaRN"}


@click.command(short_help="Bake, prove and measure the embedded model.")
@click.option(
    "--questions",
    type=click.IntRange(1, 100_000),
    default=50,
    show_default=True,
    metavar="N",
    help="Questions asked for each figure.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Which texts are made.",
)
@click.option(
    "--text",
    type=Tokens(most=1_000_000),
    metavar="N",
    help="Only print a text of N tokens, to chat about with the embedded model.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write ggext eval's report on the longest file too, as one page.",
)
def demo(questions: int, seed: int, text: int | None, html: Path | None) -> None:
    """Show what context extension does: a small model, trained on 256 tokens, asked at up to 2048.

    Everything printed is measured now, on this machine, through llama.cpp.
    """
    from ggext.cli.eval import check_folder
    from ggext.cli.progress import steps
    from ggext.demo import run, sample_text, work

    if html is not None:
        check_folder(html)
    if text is not None:
        click.echo(sample_text(text, seed))
        return
    start = time.perf_counter()
    click.echo(_heading(questions))
    with tempfile.TemporaryDirectory(prefix="ggext-demo-") as folder:
        with steps(work(questions)) as bar:
            result = run(Path(folder), questions, seed, _watcher(bar))
        click.echo(_rest(result))
        click.echo("\n".join(_effective(result)))
        if html is not None:
            _write_report(Path(folder), questions, seed, html)
    click.echo(f"measured in {time.perf_counter() - start:.0f} s")


def _watcher(bar: Steps) -> Watcher:
    from ggext import demo

    class Shown(demo.Watcher):
        """A row when it is measured, and the bar under it."""

        def step(self, name: str) -> None:
            bar.step(name)

        def advance(self, tokens: int) -> None:
            bar.advance(tokens)

        def row(self, method: Method, recalls: Sequence[Recall]) -> None:
            bar.above(_row(_NAMES[method], [_cell(recall) for recall in recalls]))

    return Shown()


def _heading(questions: int) -> str:
    from ggext.demo import LENGTHS, TRAINED

    model = f"The embedded model was trained on {TRAINED} tokens"
    answers = f"Answers that are exact, greedy, {questions} questions a figure, with 95 % intervals"
    lines = [
        f"{model} and reads a text that tells who keeps what where.",
        "",
        f"{answers}; factor = length / {TRAINED}:",
        _row("tokens", [f"{length:,}" for length in LENGTHS]),
    ]
    return "\n".join(lines)


def _cell(recall: Recall) -> str:
    low, high = (
        f"{end:.2f}".removeprefix("0") for end in (recall.share.low, recall.share.high)
    )
    return f"{recall.share.value:.2f} {low}–{high}"


def _rest(result: DemoResult) -> str:
    """What follows the table of answers."""
    return "\n".join(
        [
            "",
            _compressed(result),
            *_perplexities(result),
            "",
            *_example_lines(result),
            "",
        ]
    )


def _compressed(result: DemoResult) -> str:
    from ggext.demo import SHARE

    length = result.compressed.length
    return (
        f"YaRN's texts of {length:,} tokens in {SHARE:.0%} of their memory "
        f"(--when-full compress --keep {SHARE:g}): {_cell(result.compressed)}"
    )


def _perplexities(result: DemoResult) -> list[str]:
    from ggext.demo import LENGTHS, TRAINED

    steps = range(TRAINED, LENGTHS[-1] + 1, TRAINED)
    rows = (
        _row(_NAMES[p.method], [f"{v:.1f}" for v in p.values], 8)
        for p in result.perplexities
    )
    longest = LENGTHS[-1]
    texts = f"Perplexity by position in texts of {longest:,} tokens, factor {longest // TRAINED}:"
    return [
        f"{result.files} files were baked and each was verified against its recipe.",
        "",
        texts,
        _row("up to token", [f"{step:,}" for step in steps], 8),
        *rows,
    ]


def _example_lines(result: DemoResult) -> list[str]:
    from ggext.demo import TRAINED

    example = result.example
    head = (
        f"Asked after {4 * TRAINED:,} tokens: {example.question} "
        f"(the text says: {example.right})"
    )
    return [
        head,
        *(f"  {_NAMES[m]:12} {answer}" for m, answer in example.answers.items()),
    ]


def _effective(result: DemoResult) -> list[str]:
    from ggext.demo import METHODS
    from ggext.quality import phrases
    from ggext.quality.scoring import effective_context

    lines = [f"Effective context, {phrases.DEFINITIONS['ruler']}; {phrases.BOUND}:"]
    for method in METHODS:
        shares = {
            one.length: one.share for one in result.recalls if one.method == method
        }
        lines.append(
            f"  {_NAMES[method]:12} {phrases.reach(effective_context(shares)[0])}"
        )
    return [*lines, ""]


def _write_report(folder: Path, questions: int, seed: int, html: Path) -> None:
    """Of YaRN's longest file against the same without scaling, on as many texts as the demo."""
    from ggext.cli.eval import write_page
    from ggext.demo import LENGTHS, bake, text_count
    from ggext.quality.settings import EvalOptions

    trials = text_count(questions)
    options = EvalOptions(
        lengths=LENGTHS, trials=trials, documents=4, tries=("none",), seed=seed
    )
    write_page(bake(folder, "yarn", LENGTHS[-1]), options, html)


def _row(name: str, cells: Sequence[str], width: int = 16) -> str:
    return f"  {name:12}" + "".join(cell.rjust(width) for cell in cells)
