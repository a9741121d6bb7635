"""The report as a section of a model card, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ggext.quality import phrases
from ggext.quality.report import EvalReport


def card(report: EvalReport, command: str) -> str:
    """Headings, tables and the command; for README.md of a model."""
    lines = ["## How far it reaches", ""]
    if report.interrupted:
        lines += ["The run was stopped before its end.", ""]
    labels = phrases.labels(report)
    rows = []
    for setting in report.settings:
        reaches = [phrases.reach(one) for one in setting.reaches] or ["–", "–"]
        rows.append([labels[setting.name], *reaches, phrases.price(setting)])
    head = ["", *phrases.DEFINITIONS.values(), "price at a short context"]
    lines += [f"Effective context ({phrases.BOUND}):", "", *_table(head, rows)]
    lines += _answers(report, labels)
    lines += _perplexities(report, labels)
    caches = (
        f"{labels[setting.name]}: {cache}"
        for setting in report.settings
        if (cache := phrases.cache(setting)) is not None
    )
    notes = [*caches, *report.notes]
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    made = f"Measured with ggext {report.ggext} on llama.cpp {report.llama_cpp}:"
    return "\n".join([*lines, "", made, "", f"    {command}", ""])


def _answers(report: EvalReport, labels: Mapping[str, str]) -> list[str]:
    """The scores by length; no line where no question was asked."""
    scored = [setting for setting in report.settings if setting.scores]
    if not scored:
        return []
    lengths = sorted({one.length for setting in scored for one in setting.scores})
    rows = []
    for setting in scored:
        shares = {one.length: phrases.share(one.score) for one in setting.scores}
        cells = [shares.get(length, "–") for length in lengths]
        rows.append([labels[setting.name], *cells])
    units = max(one.score.units for setting in scored for one in setting.scores)
    title = (
        f"Right answers in per cent [95 %], {', '.join(report.tasks)}, at most "
        f"{phrases.texts(units)} a figure, by tokens:"
    )
    return ["", title, "", *_table(["", *(f"{n:,}" for n in lengths)], rows)]


def _perplexities(report: EvalReport, labels: Mapping[str, str]) -> list[str]:
    """The perplexity by position; no line where none was measured."""
    measured = [setting for setting in report.settings if setting.bands]
    if not measured:
        return []
    edges = sorted({(band.start, band.end) for one in measured for band in one.bands})
    rows = []
    for setting in measured:
        values = {(b.start, b.end): phrases.number(b.perplexity) for b in setting.bands}
        rows.append([labels[setting.name], *(values.get(edge, "–") for edge in edges)])
    title = f"Perplexity by position [95 %], {phrases.document_texts(report)}:"
    head = ["up to token", *(f"{end:,}" for _, end in edges)]
    return ["", title, "", *_table(head, rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in lines
    ]
