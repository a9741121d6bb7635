"""``ggext eval``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggext.arguments import parse_tokens
from ggext.cli import measuring
from ggext.cli.eval_table import as_table, duration
from ggext.cli.models import GGUF
from ggext.cli.numbers import SECONDS
from ggext.cli.process import interrupt_calls, note
from ggext.errors import ModelError
from ggext.quality import phrases

if TYPE_CHECKING:
    from ggext.quality.plan import Plan
    from ggext.quality.report import EvalReport
    from ggext.quality.run import Evaluation, Progress
    from ggext.quality.settings import EvalOptions


def _list(
    _: click.Context, __: click.Parameter, text: str | None
) -> tuple[str, ...] | None:
    return (
        None
        if text is None
        else tuple(filter(None, (w.strip() for w in text.split(","))))
    )


def _tokens(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, ...]:
    try:
        return tuple(map(parse_tokens, _list(ctx, parameter, text) or ()))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _counts(
    ctx: click.Context, parameter: click.Parameter, text: str | None
) -> int | tuple[int, ...] | None:
    """One number, or one for each length."""
    try:
        counts = tuple(map(int, _list(ctx, parameter, text) or ()))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no number") from error
    if len(counts) > 1:
        return counts
    return counts[0] if counts else None


@click.command(
    "eval", short_help="Measure how far a file really reaches, with error bars."
)
@click.argument("files", metavar="FILE [FILE ...]", nargs=-1, required=True, type=GGUF)
@click.option(
    "--lengths",
    metavar="N,...",
    callback=_tokens,
    help="Lengths of the texts, in tokens.  [default: the context, halved down to the trained one]",
)
@click.option(
    "--try",
    "tries",
    multiple=True,
    metavar="METHOD[:F]",
    help="Measure another scaling on the same file without baking it: none, linear:F, ntk:F, "
    "yarn:F. May be repeated.",
)
@click.option(
    "--kv",
    "kv_types",
    callback=_list,
    metavar="TYPE,...",
    help="Types of the KV cache [f16].",
)
@click.option(
    "--when-full",
    callback=_list,
    metavar="POLICY,...",
    help="What a full context does; texts are then longer than the context [stop].",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DOCUMENT",
    help="Your own documents, for perplexity and around the needles. May be repeated.",
)
@click.option(
    "--tasks",
    callback=_list,
    metavar="NAME,...",
    help="multikey, single, multivalue, multiquery, variables, common, frequent; all; or none "
    "[multikey].",
)
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Your own questions, JSON lines with question, answers and passage: a task of that name.",
)
@click.option(
    "--budget",
    default="10m",
    show_default=True,
    type=SECONDS,
    metavar="TIME",
    help="Time that it may take; it picks lengths and texts that fit.",
)
@click.option(
    "--trials",
    callback=_counts,
    metavar="N[,N...]",
    help="Texts for each task and length, or for each of the --lengths.",
)
@click.option(
    "--needles",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    metavar="N",
    help="Questions on each text of multikey, which is read once.",
)
@click.option(
    "--documents",
    type=click.IntRange(1),
    metavar="N",
    help="Texts, or chunks, for perplexity.",
)
@click.option(
    "--key-tokens", is_flag=True, help="Perplexity over key tokens too (LongPPL)."
)
@click.option(
    "--kl", "divergence", is_flag=True, help="KL, top-1 and Δp against the first row."
)
@click.option(
    "--protocol",
    type=click.Choice(["llama.cpp", "yarn"]),
    help="Perplexity as llama-perplexity, or the YaRN paper, defines it too.",
)
@measuring.form
@measuring.seed
@measuring.threads
@measuring.gpu_layers
@click.option(
    "--resume",
    "partial",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Keep every result in this file at once, and go on from it where it exists.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write one page with plots.",
)
@measuring.card
def eval(  # noqa: A001 - the command's name
    files: tuple[Path, ...],
    as_json: bool,
    html: Path | None,
    card: Path | None,
    partial: Path | None,
    **given: Any,
) -> None:
    """Measure how far each FILE really reaches: effective context, needles, perplexity by position,
    and what its scaling costs on short texts.

    Ctrl-C ends it and reports what was measured.
    """
    from ggext.quality.run import Evaluation

    options = _options(**given)
    for out in filter(None, (html, card)):
        check_folder(out)
    failure: ModelError | None = None
    with Evaluation(files, options, partial) as evaluation:
        try:
            _measure(evaluation)
        except ModelError as error:
            if not evaluation.measured:
                raise
            failure = error
        report = evaluation.report()
        plan = evaluation.plan
    # First what cannot fail for want of a disk: it may have taken hours.
    text = json.dumps(report.as_dict(), indent=2) if as_json else as_table(report)
    click.echo(text)
    _write(report, plan, html, card)
    if failure is not None:
        raise failure
    if report.interrupted:
        kept = f"; --resume {partial} goes on from here" if partial else ""
        note(f"ggext: stopped before the end{kept}")
        sys.exit(130)


def write_card(path: Path, card: Path) -> None:
    """Measures a file as ``ggext eval FILE --card CARD`` does. Raises GgextError."""
    from ggext.quality.run import Evaluation

    with Evaluation([path]) as evaluation:
        _measure(evaluation)
        report = evaluation.report()
        plan = evaluation.plan
    _write(report, plan, None, card)


def write_page(path: Path, options: EvalOptions, html: Path) -> None:
    """Measures a file as ``ggext eval FILE --html HTML`` does. Raises GgextError."""
    from ggext.quality.run import Evaluation

    with Evaluation([path], options) as evaluation:
        _measure(evaluation)
        report = evaluation.report()
        plan = evaluation.plan
    _write(report, plan, html, None)


def _measure(evaluation: Evaluation) -> None:
    note(_cost(evaluation))
    with interrupt_calls(evaluation.stop):
        evaluation.run(_show)
    if sys.stderr.isatty():
        note("\r\033[K", end=False)


def _options(
    *,
    tasks: tuple[str, ...] | None,
    kv_types: tuple[str, ...] | None,
    when_full: tuple[Any, ...] | None,
    texts: tuple[Path, ...],
    tries: tuple[str, ...],
    questions: Path | None,
    **others: Any,
) -> Any:
    from ggext.quality.settings import EvalOptions
    from ggext.quality.tasks import TASKS

    if tasks is None:
        tasks = TASKS[:1]
    elif tasks == ("all",):
        tasks = tuple(task for task in TASKS if task != "questions")
    elif tasks == ("none",):
        tasks = ()
    if questions is not None and "questions" not in tasks:
        tasks = (*tasks, "questions")
    return EvalOptions(
        tasks=tasks,
        kv_types=kv_types or ("f16",),
        when_full=when_full or ("stop",),
        texts=texts,
        tries=tries,
        questions=questions,
        **others,
    )


def check_folder(path: Path) -> None:
    """Raises OutputError where a file's folder is missing or cannot be written, before anything is
    measured."""
    from ggext.errors import OutputError

    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(
            f"{path}: the folder {path.parent} does not exist; make it first"
        )
    if not os.access(folder, os.W_OK):
        raise OutputError(
            f"{path}: the folder {folder} cannot be written; choose another"
        )


def _cost(evaluation: Evaluation) -> str:
    plan = evaluation.plan
    missing = evaluation.missing
    tokens = sum(item.length for _, item in missing)
    seconds = sum(plan.cost(*pair) for pair in missing)
    lengths = ", ".join(f"{length:,}" for length in plan.lengths)
    texts = []
    if evaluation.options.tasks:
        counts = plan.trials.values()
        texts.append(f"{phrases.texts(min(counts), max(counts))} a length")
    texts += (
        [f"{phrases.texts(plan.documents)} for perplexity"] if plan.documents else []
    )
    line = f"{tokens:,} tokens, about {duration(seconds)}: lengths {lengths}; {', '.join(texts)}"
    done = len(plan.items) - len(missing)
    return f"{line}; {done} of {len(plan.items)} results are there" if done else line


def _show(progress: Progress) -> None:
    """One line that is painted over, where a terminal watches."""
    if not sys.stderr.isatty():
        return
    remaining = duration(progress.seconds_left)
    line = f"{progress.done + 1}/{progress.total} · {remaining} left · {progress.what}"
    note(f"\r\033[K{line[:100]}", end=False)


def _write(
    report: EvalReport, plan: Plan, html: Path | None, card: Path | None
) -> None:
    if html is not None:
        from ggext.quality.page import page

        write_text(html, page(report, plan, command_line()))
        note(f"wrote {html}")
    if card is not None:
        from ggext.quality.card import card as text

        write_text(card, text(report, command_line()))
        note(f"wrote {card}")


def write_text(path: Path, text: str) -> None:
    from ggext.gguf.writer import whole_file

    data = text.encode("utf-8")
    with whole_file(path, len(data)) as file:
        file.write(data)


def command_line() -> str:
    import shlex

    return shlex.join(["ggext", *sys.argv[1:]])
