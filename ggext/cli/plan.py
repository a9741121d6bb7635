"""``ggext plan``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggext.cli import chat_options
from ggext.cli.models import model_file
from ggext.cli.numbers import TOKENS, TOKENS_OR_AUTO
from ggext.cli.progress import waiting

if TYPE_CHECKING:
    from ggext.plan import Plan, PlanOptions

_PARTS = {
    "weights": "weights",
    "cache": "KV cache",
    "compute": "computing",
    "output": "logits",
    "checkpoints": "window copies",
    "total": "total",
}


@click.command(short_help="Say what a model and a context need, before loading.")
@model_file
@click.option(
    "-c",
    "--context",
    "--ctx",
    "--ctx-size",
    "context",
    type=TOKENS_OR_AUTO,
    metavar="N|auto",
    help="Tokens; auto: what fits.  [default: what the file is made for]",
)
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    metavar="SHARE",
    help="Share of the tokens that have a place, as ggext chat --when-full compress.  [default: 1]",
)
@click.option(
    "--kv",
    "kv_type",
    default="f16",
    show_default=True,
    metavar="TYPE",
    help="Type of cached keys and values.",
)
@click.option(
    "--batch",
    type=TOKENS,
    metavar="N",
    help="Tokens at a time.  [default: as ggext chat]",
)
@click.option(
    "--flash-attention/--no-flash-attention",
    default=None,
    help="[default: as ggext chat]",
)
@click.option(
    "-ngl",
    "--gpu-layers",
    "--n-gpu-layers",
    "gpu_layers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Layers on the GPU.  [default: all, if there is one]",
)
@chat_options.swa
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def plan(
    file: Path,
    as_json: bool,
    context: int | str | None,
    keep: float,
    gpu_layers: int | None,
    **choices: Any,
) -> None:
    """Add up what llama.cpp will allocate for FILE, from its header alone, and compare it with what
    is free.

    The exit code is 0 if it fits and 1 if it does not.
    """
    from ggext.footprint.planner import Choices
    from ggext.plan import PlanOptions
    from ggext.plan import plan as run

    options = PlanOptions(context, gpu_layers, Choices(**choices), keep)
    with waiting("adding up the memory"):
        result = run(file, options)
    text = (
        json.dumps(result.as_dict(), indent=2) if as_json else in_words(result, options)
    )
    click.echo(text)
    sys.exit(result.fits is False)


def in_words(result: Plan, options: PlanOptions) -> str:
    context = result.context
    lines = [
        (
            f"{result.path}: {result.arch}, {result.layers} layers, "
            f"made for {result.made_for:,} tokens"
        ),
        f"context {context.tokens:,} tokens, {context.batch} at a time, kv {context.kv_type}, "
        "flash attention "
        f"{'on' if context.flash_attention else 'off'}"
        + (f", {_on_gpu(result)}" if result.gpu_layers else ""),
        "",
        *_table(result),
        "",
        *_kept(result, options),
        *_verdict(result, options),
        *_notes(result),
    ]
    return "\n".join(lines)


def _on_gpu(result: Plan) -> str:
    return (
        "all layers on the GPU"
        if result.gpu_layers > result.layers
        else f"{result.gpu_layers} layers on the GPU"
    )


def _table(result: Plan) -> list[str]:
    columns = [("RAM", result.ram, result.free.ram)]
    if result.gpu_layers:
        columns.append(("GPU", result.gpu, result.free.gpu))
    rows = [("", [name for name, _, _ in columns])]
    parts = {
        part: words
        for part, words in _PARTS.items()
        if part != "checkpoints" or result.ram.checkpoints
    }
    rows += [
        (words, [size(getattr(share, part)) for _, share, _ in columns])
        for part, words in parts.items()
    ]
    rows.append(
        (
            "free",
            ["not known" if free is None else size(free) for _, _, free in columns],
        )
    )
    return [
        f"{words:13}{cells[0]:>11}" + "".join(f"{cell:>12}" for cell in cells[1:])
        for words, cells in rows
    ]


def _kept(result: Plan, options: PlanOptions) -> list[str]:
    if options.keep == 1:
        return []
    text = int(result.context.tokens / options.keep)
    return [
        f"with --when-full compress it holds a text of {text:,} tokens, those that stand out"
    ]


def _verdict(result: Plan, options: PlanOptions) -> list[str]:
    verdict = "it fits" if result.fits else "it does not fit"
    if result.largest is None:
        return ["whether it fits is not known: the system does not say what is free"]
    if not result.largest:
        return [
            f"{verdict}, nor does any context: take a smaller model or quantization"
        ]
    lines = [f"{verdict}; memory holds up to {result.largest:,} tokens"]
    if result.context.tokens > result.made_for:
        remedy = f"ggext convert {result.path} --target-context {result.context.tokens}"
        lines = [
            (
                f"{verdict} in memory, but the file is made for {result.made_for:,} tokens: "
                "what stands"
            ),
            f"past those is misread. {remedy}",
            f"makes one that reaches them; memory holds up to {result.largest:,} tokens",
        ]
    elif result.largest > result.made_for:
        lines = [f"{lines[0]}, the file is made for {result.made_for:,}"]
    if (
        not result.fits
        and options.choices.kv_type == "f16"
        and options.choices.flash_attention is not False
    ):
        smaller = _with_small_cache(result, options)
        if smaller:
            lines.append(f"with --kv q8_0: {smaller:,} tokens")
    return lines


def _with_small_cache(result: Plan, options: PlanOptions) -> int:
    """The largest context with a cache of half the size; 0 where its blocks do not divide the
    heads."""
    from ggext.errors import UsageError
    from ggext.plan import plan as run

    try:
        return (
            run(
                result.path,
                replace(options, choices=replace(options.choices, kv_type="q8_0")),
                result.free,
            ).largest
            or 0
        )
    except UsageError:
        return 0


def _notes(result: Plan) -> list[str]:
    lines = []
    if result.windowed_layers:
        two = result.context.sequences > 1
        small = "the tokens of two windows" if two else "the window's tokens"
        kept = "every token" if result.context.whole_windows else small
        lines.append(
            f"{result.windowed_layers} layers see a sliding window; their cache keeps {kept}"
        )
    if not result.measured:
        lines.append(
            f"the architecture {result.arch} was not held to llama.cpp: its figure for "
            "computing is an estimate"
        )
    return lines


def size(count: int) -> str:
    """Bytes in a unit that people read: 1.5 GiB."""
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= limit:
            return f"{count / limit:,.1f} {unit}"
    return f"{count} B"
