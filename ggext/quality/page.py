"""The report as one HTML page: plots, tables, recipe, command; it opens without a network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from ggext.gguf.rope import effective_table, recipe_of
from ggext.quality import phrases
from ggext.quality.report import EvalReport, SettingReport
from ggext.quality.scoring import RULER_THRESHOLD
from ggext.quality.statistics import Estimate
from ggext.quality.svg import Axes, Line, chart, grid
from ggext.rope import methods
from ggext.rope.scaling import RopeTable
from ggext.runtime.scaled import unscaled_geometry

if TYPE_CHECKING:
    from ggext.quality.plan import Plan
    from ggext.quality.settings import Setting

_STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;color:#111;background:#fff;max-width:800px;
margin:0 auto;padding:1em}
h1{font-size:1.5em;margin:.2em 0}h2{font-size:1.15em;margin:1.6em 0 .3em;
border-bottom:1px solid #999}h3{font-size:1em;margin:1em 0 .2em}
table{border-collapse:collapse;font-size:13px;margin:.4em 0;display:block;overflow-x:auto}
td,th{border:1px solid #bbb;padding:.2em .5em;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
.headline{border:2px solid #14213d;padding:.5em .8em;margin:.6em 0}
.headline b{font-size:1.25em}
svg{width:100%;height:auto;display:block;margin:.4em 0}svg text{font:12px system-ui,sans-serif;
fill:#222}pre{background:#f2f2f2;padding:.6em;overflow-x:auto;font-size:12px;white-space:pre-wrap;
overflow-wrap:anywhere}.note{color:#444;font-size:13px}
@media print{body{max-width:none}}
"""


def page(report: EvalReport, plan: Plan, command: str) -> str:
    """A whole document. `command`: what made it, as typed."""
    title = ", ".join(dict.fromkeys(setting.file for setting in report.settings))
    sections = [
        _headlines(report),
        _scores(report),
        _grids(report),
        _perplexities(report),
        _further(report),
        _differences(report),
        _tables(report, plan),
        _made(report, plan, command),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}: how far it reaches</title><style>{_STYLE}</style></head>"
        f"<body>\n<h1>How far does it really reach?</h1>\n<p>{escape(title)}</p>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _headlines(report: EvalReport) -> str:
    labels = phrases.labels(report)
    parts = []
    if report.interrupted:
        parts.append('<p class="note">The run was stopped before its end: this is what was '
                     "measured until then.</p>")  # fmt: skip
    for setting in report.settings:
        lines = []
        for one in setting.reaches:
            definition = escape(phrases.DEFINITIONS[one.definition])
            reach, _, note = phrases.reach(one).partition(" (")
            more = f' <span class="note">({escape(note)}</span>' if note else ""
            lines.append(
                f"Effective context <b>{escape(reach)}</b>{more}: {definition}"
            )
        if setting.price is not None:
            change, _, where = phrases.price(setting).partition(" perplexity")
            lines.append(
                f'Price at a short context: <b>{escape(change)}</b> <span class="note">perplexity'
                f"{escape(where)}</span>"
            )
        facts = filter(
            None, (f"trained on {setting.trained:,} tokens", phrases.cache(setting))
        )
        lines.append(f'<span class="note">{escape("; ".join(facts))}</span>')
        head = f"<h3>{escape(labels[setting.name])}</h3>"
        parts.append(f'<div class="headline">{head}{"<br>".join(lines)}</div>')
    bound = f"{phrases.BOUND}; open: more texts could still show it"
    parts.append(f'<p class="note">Effective context: {escape(bound)}.</p>')
    return "\n".join(parts)


def _scores(report: EvalReport) -> str:
    scored = [setting for setting in report.settings if setting.scores]
    if not scored:
        return ""
    labels = phrases.labels(report)
    lines = [
        Line(
            labels[setting.name],
            tuple(
                (
                    one.length,
                    100 * one.score.value,
                    100 * one.score.low,
                    100 * one.score.high,
                )
                for one in setting.scores
            ),
        )
        for setting in scored
    ]
    axes = Axes(
        "tokens",
        "right answers, %",
        _trained(report),
        ((100 * RULER_THRESHOLD, "RULER 85.6"),),
        (0, 103),
    )
    lengths = sorted({one.length for setting in scored for one in setting.scores})
    rows = []
    for setting in scored:
        by_length = {one.length: one.score for one in setting.scores}
        cells = [
            phrases.share(by_length[n]) if n in by_length else "–" for n in lengths
        ]
        rows.append([labels[setting.name], *cells])
    counts = {
        (one.score.units, one.score.items)
        for setting in scored
        for one in setting.scores
    }
    texts = ", ".join(
        f"{phrases.texts(units)} with {items} questions"
        for units, items in sorted(counts)
    )
    return (
        f"<h2>Questions on long texts ({escape(', '.join(report.tasks))})</h2>"
        + chart(lines, axes)
        + _table(["right, % [95 %]", *(f"{n:,}" for n in lengths)], rows)
        + f'<p class="note">A figure is of {texts}. Bands: Wilson intervals, a text being a '
        "cluster.</p>" + _unfinished(scored)
    )


def _unfinished(scored: Sequence[SettingReport]) -> str:
    cut = sum(one.cut for setting in scored for one in setting.scores)
    empty = sum(one.empty for setting in scored for one in setting.scores)
    if not cut and not empty:
        return ""
    return f'<p class="note">{cut} answers hit their budget unfinished, {empty} were empty.</p>'


def _grids(report: EvalReport) -> str:
    parts = []
    for setting in report.settings:
        scores = [one for one in setting.scores if any(one.depths)]
        if not scores:
            continue
        count = len(scores[0].depths)
        rows = [
            f"{100 * i // count} to {100 * (i + 1) // count} %" for i in range(count)
        ]
        shares = [
            [None if one.depths[i] is None else one.depths[i][0] for one in scores]  # type: ignore[index]
            for i in range(count)
        ]
        names = ("tokens of the text", "depth from the start")
        parts.append(f"<h3>{escape(phrases.labels(report)[setting.name])}</h3>")
        parts.append(grid([f"{one.length:,}" for one in scores], rows, shares, names))
    if not parts:
        return ""
    few = "A cell is of few questions and for looking; the verdict above pools a whole length."
    return f'<h2>Where the needle stands</h2><p class="note">{few}</p>' + "\n".join(
        parts
    )


def _perplexities(report: EvalReport) -> str:
    measured = [setting for setting in report.settings if setting.bands]
    if not measured:
        return ""
    labels = phrases.labels(report)
    lines = []
    for setting in measured:
        points = tuple(
            (band.end, band.perplexity.value, *_bounds(band.perplexity))
            for band in setting.bands
        )
        lines.append(Line(labels[setting.name], points))
    spread = [point[1] for line in lines for point in line.points]
    axes = Axes(
        "up to token",
        "perplexity",
        _trained(report),
        y_log=max(spread) > 4 * min(spread),
    )
    edges = sorted(
        {(band.start, band.end) for setting in measured for band in setting.bands}
    )
    rows = []
    for setting in measured:
        by_edge = {
            (b.start, b.end): phrases.number(b.perplexity) for b in setting.bands
        }
        rows.append([labels[setting.name], *(by_edge.get(edge, "–") for edge in edges)])
    return (
        "<h2>Perplexity by position</h2>"
        + chart(lines, axes)
        + _table(["up to token", *(f"{end:,}" for _, end in edges)], rows)
        + f'<p class="note">{phrases.document_texts(report)}. Bands are t intervals over texts. '
        "A low perplexity does not show that distant text is found: the questions above do.</p>"
    )


def _bounds(estimate: Estimate) -> tuple[float | None, float | None]:
    if not math.isfinite(estimate.high):
        return None, None
    return estimate.low, estimate.high


def _further(report: EvalReport) -> str:
    labels = phrases.labels(report)
    rows = []
    for setting in report.settings:
        if setting.key_tokens is not None:
            keys = setting.key_tokens
            value = "–" if keys.perplexity is None else f"{keys.perplexity:.3f}"
            of = f"{keys.count:,} of {keys.scored:,} tokens"
            rows.append([labels[setting.name], "key tokens (LongPPL)", value, of])
        if setting.protocol is not None:
            one = setting.protocol
            error = "" if one.error is None else f" ± {one.error:.4f}"
            of = f"{one.count} × {one.length:,} tokens"
            rows.append(
                [
                    setting.name,
                    f"{one.protocol}'s protocol",
                    f"{one.value:.4f}{error}",
                    of,
                ]
            )
    parts = []
    if rows:
        parts.append("<h2>Further perplexities</h2>" + _table(["", "", "", ""], rows))
    parts += list(_key_bands(report))
    rows = [
        [
            labels[setting.name],
            f"{band.start:,} to {band.end:,}",
            f"{band.kl.value:.3g}",
            f"{100 * band.same_top.value:.1f} %",
            f"{100 * band.delta_p.value:+.2f} %",
        ]
        for setting in report.settings
        for band in setting.divergence
    ]
    if rows:
        head = ["", "tokens", "KL, nats", "same likeliest", "Δp"]
        parts.append(
            f"<h2>Divergence from {escape(report.settings[0].name)}</h2>"
            + _table(head, rows)
        )
    return "".join(parts)


def _key_bands(report: EvalReport) -> Iterator[str]:
    """Key tokens by position, a row for each setting."""
    labels = phrases.labels(report)
    by_name = {
        one.name: one.key_tokens.bands for one in report.settings if one.key_tokens
    }
    ends = sorted({band.end for parts in by_name.values() for band in parts})
    rows = []
    for name, parts in by_name.items():
        by_end = {band.end: phrases.key_band(band) for band in parts}
        rows.append([labels[name], *(by_end.get(end, "–") for end in ends)])
    if rows:
        yield "<h3>Key tokens by position: perplexity (how many)</h3>"
        yield _table(["up to token", *(f"{end:,}" for end in ends)], rows)


def _differences(report: EvalReport) -> str:
    if not report.differences:
        return ""
    letters = phrases.letters(report)
    rows = []
    for one in report.differences:
        where = (
            f"{one.end:,}" if one.what == "answers" else f"{one.start:,} to {one.end:,}"
        )
        pair = f"{letters[one.second]} against {letters[one.first]}"
        winner = "no winner" if one.winner is None else letters[one.winner]
        rows.append([pair, one.what, where, phrases.change(one.difference), winner])
    head = ["", "", "tokens", "difference [95 %]", "better"]
    return "<h2>Differences on the same texts</h2>" + _table(head, rows)


def _tables(report: EvalReport, plan: Plan) -> str:
    labels = phrases.labels(report)
    lines = []
    for setting in plan.settings:
        table = _table_of(setting)
        points = tuple(
            (float(i), 2 * math.pi / w, None, None)
            for i, w in enumerate(table.inv_freq)
            if w > 0
        )
        lines.append(
            Line(f"{labels[setting.name]}, gain {table.attention_factor:.4g}", points)
        )
    trained = plan.settings[0].trained
    axes = Axes(
        "rotary pair",
        "wavelength, tokens",
        levels=((trained, f"trained {trained:,}"),),
        y_log=True,
        x_log=False,
    )
    return "<h2>RoPE</h2>" + chart(_distinct(lines), axes)


def _distinct(lines: Sequence[Line]) -> list[Line]:
    """One line of those that are equal: a KV type changes no wavelength."""
    return list({line.points: line for line in lines}.values())


def _table_of(setting: Setting) -> RopeTable:
    if setting.scaling is None:
        return effective_table(setting.header, by_ggext=True)
    return methods.make_table(setting.scaling, unscaled_geometry(setting.header))


def _made(report: EvalReport, plan: Plan, command: str) -> str:
    parts = [f"<h2>How it was made</h2><pre>{escape(command)}</pre>"]
    facts = [
        f"ggext {report.ggext}, llama.cpp {report.llama_cpp}",
        f"seed {report.seed}, prompts: {report.form}",
        f"texts: {', '.join(report.texts) or 'made up'}",
    ]
    parts.append(f"<p>{escape('; '.join(facts))}.</p>")
    parts += [f'<p class="note">{escape(note)}</p>' for note in report.notes]
    for header in {setting.path: setting.header for setting in plan.settings}.values():
        recipe = recipe_of(header)
        if recipe is not None:
            text = json.dumps(recipe.as_dict(), indent=1)
            parts.append(
                f"<h3>Recipe of {escape(header.path.name)}</h3><pre>{escape(text)}</pre>"
            )
    return "\n".join(parts)


def _trained(report: EvalReport) -> tuple[tuple[float, str], ...]:
    marks = {float(one.trained): f"trained {one.trained:,}" for one in report.settings}
    for one in report.settings:
        marks.setdefault(float(one.context), f"context {one.context:,}")
    return tuple(marks.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"
