"""``ggext inspect``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggext.cli.models import model_file
from ggext.cli.process import note
from ggext.errors import UsageError

if TYPE_CHECKING:
    from ggext.inspect import Inspection, Pair

#: float32 factors are off by 1e-7.
_NO_FURTHER = 1.001
_CHART_ROWS = 16
_CHART_COLUMNS = 40
_MARKS = {"kept": "·", "blended": "▒", "interpolated": "█"}


@click.command(short_help="Show what a GGUF file says, without loading it.")
@model_file
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.png|svg",
    help="Draw the RoPE table.",
)
@click.option(
    "--diff",
    "before",
    type=click.Path(path_type=Path),
    metavar="BEFORE",
    help="Instead, list the keys and tensors in which BEFORE and FILE differ.",
)
def inspect(file: Path, as_json: bool, plot: Path | None, before: Path | None) -> None:
    """Say what FILE is, how far it reaches, and what its RoPE scaling does to each frequency."""
    from ggext.inspect import inspect as run

    if before is not None:
        if plot is not None:
            raise UsageError(
                "--plot draws one file, --diff compares two; give one of them"
            )
        click.echo(_differences(before, file, as_json))
        return

    result = run(file)
    if plot is not None:
        from ggext.cli.plot import plot_table

        plot_table(result, plot)
    text = json.dumps(result.as_dict(), indent=2) if as_json else in_words(result)
    click.echo(text)
    if plot is not None:
        note(f"wrote {plot}")


def _differences(before: Path, after: Path, as_json: bool) -> str:
    from dataclasses import asdict

    from ggext.cli.progress import transfer
    from ggext.gguf.diff import diff

    size = before.stat().st_size if before.exists() else 0
    with transfer(size, after.name) as progress:
        differences = diff(before, after, progress)
    if as_json:
        return json.dumps([asdict(difference) for difference in differences], indent=2)
    lines = [
        f"{d.kind:6} {d.name}: {d.before or 'absent'} → {d.after or 'absent'}"
        for d in differences
    ]
    return "\n".join(lines) or f"{before} and {after} have the same keys and tensors"


def in_words(result: Inspection) -> str:
    types = ", ".join(f"{name} ×{count}" for name, count in result.types.items())
    lines = [
        f"{result.path}: {result.name or 'no name'}",
        f"architecture  {result.arch}, {si(result.parameters)} parameters, {result.size:,} bytes",
        f"tensors       {types}",
        f"context       {result.context:,} tokens" + extension(result),
    ]
    if result.unopened:
        lines.append(f"llama.cpp     does not open this file: {result.unopened}")
    if result.unsaid_choice:
        lines.append(f"attention     {result.unsaid_choice}")
    if result.unrotated:
        return "\n".join([*lines, f"rope          none, {result.unrotated}"])
    if result.rope is None or result.geometry is None:
        return "\n".join([*lines, f"rope          not readable: {result.rope_unknown}"])
    geometry = result.geometry
    lines.append(f"rope          {method_words(result)}")
    lines.append(
        f"              base {geometry.base:g}, {geometry.n_rot} of {geometry.head_dim}"
    )
    lines[-1] += f" dimensions, attention factor {result.rope.attention_factor:.6g}"
    lines.append(f"              {'' if result.shift_safe else 'not '}safe to roll")
    if result.recipe is not None and result.recipe.searched is not None:
        lines.append(f"searched      {result.recipe.searched.in_words()}")
    lines += _other_layers(result)
    if result.still_pairs:
        lines.append(f"              {result.still_pairs}")
    if result.context_parameters:
        values = ", ".join(
            f"{name} {value:.6g}" for name, value in result.context_parameters.items()
        )
        lines.append(f"              as other programs read it; ggext sets {values}")
    if result.short_rope is not None:
        lines.append(
            f"              another table in a context made for at most {result.trained_context:,} "
            "tokens (llama.cpp "
            "picks by the context's size, not by the text's)"
        )
    return "\n".join(
        [*lines, *_regions(result.pairs), *_meaning(result), "", *_chart(result)]
    )


def _other_layers(result: Inspection) -> list[str]:
    """The layers that rotate otherwise than the table says, or do not see everything."""
    count = len(result.layers)
    lines = []
    sliding = result.layers.count("unscaled")
    if sliding and result.sliding_rope is not None and result.geometry is not None:
        lines.append(
            f"              {sliding} of {count} layers see the latest {result.sliding_window:,} "
            f"tokens; base {result.geometry.sliding_base:g}, not scaled"
        )
    elif result.sliding_window:
        lines.append(
            f"              some layers see the latest {result.sliding_window:,} tokens"
        )
    still = result.layers.count("unrotated")
    if still:
        lines.append(f"              {still} of {count} layers do not rotate")
    return lines


def extension(result: Inspection) -> str:
    if result.context == result.trained_context:
        return ", as trained"
    factor = result.context / result.trained_context
    return f", extended from {result.trained_context:,} (×{factor:g})"


def method_words(result: Inspection) -> str:
    if result.recipe is None or result.recipe.scaling.method == "none":
        return {"none": "no scaling"}.get(result.method, result.method)
    scaling = result.recipe.scaling
    encoding = result.recipe.encoding
    return f"{scaling.method} ×{scaling.factor:g} as {encoding} (asked by {result.recipe.source})"


def _regions(pairs: list[Pair]) -> list[str]:
    lines = []
    for treatment, words in (
        ("kept", "kept as trained"),
        ("blended", "blended"),
        ("interpolated", "interpolated"),
    ):
        chosen = [p for p in pairs if p.treatment == treatment]
        if chosen:
            first = chosen[0]
            last = chosen[-1]
            span = (
                f"pairs {first.index} to {last.index}, wavelengths {_tokens(first)} to "
                f"{_tokens(last)}"
            )
            factor = (
                f" by {chosen[-1].slowdown:.4g}" if treatment == "interpolated" else ""
            )
            lines.append(f"  {_MARKS[treatment]} {words + factor}: {span} tokens")
    return lines


def _meaning(result: Inspection) -> list[str]:
    """Whether the pairs that did not come round in training go on within what they saw there."""
    trained = result.trained_context
    slow = [p for p in result.pairs if math.inf > p.wavelength / p.slowdown > trained]
    if not slow:
        return []
    growth = result.context / trained
    further = max(growth / pair.slowdown for pair in slow)
    if growth <= 1:
        text = f"past {trained:,} tokens slow pairs turn further than training showed"
    elif further <= _NO_FURTHER:
        text = f"good: in {result.context:,} tokens no slow pair turns further than in training"
    else:
        text = f"some slow pairs turn up to {further:.2g} times as far as in training"
    return [f"  {text}"]


def _tokens(pair: Pair) -> str:
    return "∞" if pair.wavelength == math.inf else f"{pair.wavelength:,.0f}"


def _chart(result: Inspection) -> list[str]:
    """Wavelength (log scale) against pair; the bar's mark says what became of the pair."""
    finite = [p for p in result.pairs if p.wavelength < math.inf]
    shown = finite[:: max(1, math.ceil(len(finite) / _CHART_ROWS))]
    longest = max(max(p.wavelength for p in shown), result.context)

    def column(tokens: float) -> int:
        return max(
            0, round(_CHART_COLUMNS * math.log(max(1.0, tokens)) / math.log(longest))
        )

    edge = column(result.trained_context)
    trained = f"{result.trained_context:,}"
    lines = [
        f"pair  wavelength, tokens; bars on a log scale, | is the {trained} of training"
    ]
    for pair in shown:
        bar = (_MARKS[pair.treatment] * column(pair.wavelength)).ljust(
            _CHART_COLUMNS + 1
        )
        bar = (
            bar[:edge] + "|" + bar[edge + 1 :]
            if column(pair.wavelength) <= edge
            else bar
        )
        lines.append(f"{pair.index:4}  {_tokens(pair):>12}  {bar.rstrip()}")
    return lines


def si(count: int) -> str:
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return str(count)
