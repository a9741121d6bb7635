"""The report of ``ggext eval`` for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ggext.quality import phrases

if TYPE_CHECKING:
    from ggext.quality.report import EvalReport, SettingReport


def duration(seconds: float) -> str:
    """Such as 40 s, 7 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def as_table(report: EvalReport) -> str:
    """Effective context first, then what it rests on."""
    lines: list[str] = []
    for part in (_reaches, _needles, _depths, _perplexities, _more, _differences):
        lines += part(report)
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)


def _reaches(report: EvalReport) -> list[str]:
    lines = []
    labels = phrases.labels(report)
    if len({setting.file for setting in report.settings}) == 1 < len(report.settings):
        lines.append(report.settings[0].file)
    for setting in report.settings:
        lines.append(f"{labels[setting.name]}: trained on {setting.trained:,} tokens")
        for reach in setting.reaches:
            definition = phrases.DEFINITIONS[reach.definition]
            lines.append(f"  effective context, {definition}: {phrases.reach(reach)}")
        if setting.price is not None:
            lines.append(f"  price at a short context: {phrases.price(setting)}")
        if (cache := phrases.cache(setting)) is not None:
            lines.append(f"  {cache}")
    if any(setting.reaches for setting in report.settings):
        lines.append(f"  ({phrases.BOUND})")
    return lines


def _needles(report: EvalReport) -> list[str]:
    scored = [setting for setting in report.settings if setting.scores]
    if not scored:
        return []
    lengths = sorted({one.length for setting in scored for one in setting.scores})
    lines = [
        "",
        f"right answers in per cent [95 %], by tokens ({', '.join(report.tasks)})",
    ]
    rows = [("", *(f"{length:,}" for length in lengths))]
    labels = phrases.labels(report)
    for setting in scored:
        by_length = {one.length: phrases.share(one.score) for one in setting.scores}
        rows.append(
            (labels[setting.name], *(by_length.get(length, "–") for length in lengths))
        )
    lines += columns(rows)
    units = [one.score for setting in scored for one in setting.scores]
    counted = phrases.texts(
        min(one.units for one in units), max(one.units for one in units)
    )
    lines.append(
        f"  {counted} a figure, {max(one.items for one in units)} questions at most"
    )
    lines += list(_unfinished(scored))
    return lines


def _unfinished(scored: Sequence[SettingReport]) -> Iterator[str]:
    for setting in scored:
        cut = sum(one.cut for one in setting.scores)
        empty = sum(one.empty for one in setting.scores)
        if cut or empty:
            yield f"  {setting.name}: {cut} answers hit their budget unfinished, {empty} were empty"


def _depths(report: EvalReport) -> list[str]:
    """The grid: a length is a column, from the text's start down."""
    lines: list[str] = []
    for setting in report.settings:
        scores = [one for one in setting.scores if any(one.depths)]
        if not scores:
            continue
        label = phrases.labels(report)[setting.name]
        lines += ["", f"{label}: right answers in per cent, by depth of the needle"]
        rows = [("from the start", *(f"{one.length:,}" for one in scores))]
        count = len(scores[0].depths)
        for band in range(count):
            cells = []
            for one in scores:
                share = one.depths[band]
                cell = "–" if share is None else f"{100 * share[0]:.0f}"
                cells.append(cell)
            rows.append((f"to {100 * (band + 1) // count} %", *cells))
        lines += columns(rows)
    return lines


def _perplexities(report: EvalReport) -> list[str]:
    measured = [setting for setting in report.settings if setting.bands]
    if not measured:
        return []
    edges = sorted(
        {(band.start, band.end) for setting in measured for band in setting.bands}
    )
    lines = ["", f"perplexity by position [95 %], {phrases.document_texts(report)}"]
    rows = [("up to token", *(f"{end:,}" for _, end in edges))]
    labels = phrases.labels(report)
    for setting in measured:
        by_edge = {
            (one.start, one.end): phrases.number(one.perplexity)
            for one in setting.bands
        }
        rows.append((labels[setting.name], *(by_edge.get(edge, "–") for edge in edges)))
    return lines + columns(rows)


def _more(report: EvalReport) -> list[str]:
    lines = []
    for setting in report.settings:
        if setting.key_tokens is not None:
            keys = setting.key_tokens
            value = "–" if keys.perplexity is None else f"{keys.perplexity:.3f}"
            lines.append(
                f"{setting.name}: perplexity of key tokens (LongPPL) {value}, {keys.count:,} of "
                f"{keys.scored:,} tokens, against {keys.short:,} of context"
            )
            rows = [
                ("up to token", *(f"{band.end:,}" for band in keys.bands)),
                ("key tokens' (count)", *map(phrases.key_band, keys.bands)),
            ]
            lines += columns(rows)
        if setting.protocol is not None:
            one = setting.protocol
            error = "" if one.error is None else f" ± {one.error:.4f}"
            lines.append(
                f"{setting.name}: perplexity by {one.protocol}'s protocol {one.value:.4f}{error}, "
                f"{one.count} × {one.length:,} tokens"
            )
        lines += [
            f"{setting.name}, tokens {band.start:,} to {band.end:,}: KL {band.kl.value:.3g}, same "
            f"likeliest token {100 * band.same_top.value:.1f} %, Δp "
            f"{100 * band.delta_p.value:+.2f} %"
            for band in setting.divergence
        ]
    return ["", *lines] if lines else []


def _differences(report: EvalReport) -> list[str]:
    if not report.differences:
        return []
    letters = phrases.letters(report)
    lines = [
        "",
        "differences on the same texts [95 %]; a winner only where that excludes 0",
    ]
    rows = []
    for one in report.differences:
        where = f"{one.end:,} tokens"
        if one.what == "perplexity":
            where = f"tokens {one.start:,} to {one.end:,}"
        winner = "no winner" if one.winner is None else f"better: {letters[one.winner]}"
        pair = f"{letters[one.second]} against {letters[one.first]}"
        rows.append(
            (pair, f"{one.what}, {where}", phrases.change(one.difference), winner)
        )
    return lines + columns(rows)


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The rows with their cells in line, the first column to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
