"""The report as a section of a model card, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

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
    scored = [setting for setting in report.settings if setting.scores]
    lengths = sorted({one.length for setting in scored for one in setting.scores})
    if scored:
        rows = []
        for setting in scored:
            by_length = {one.length: one.score for one in setting.scores}
            rows.append(
                [
                    labels[setting.name],
                    *(
                        phrases.share(by_length[n]) if n in by_length else "–"
                        for n in lengths
                    ),
                ]
            )
        units = max(one.score.units for setting in scored for one in setting.scores)
        title = (
            f"Right answers in per cent [95 %], {', '.join(report.tasks)}, at most "
            f"{phrases.texts(units)} a figure, by tokens:"
        )
        lines += ["", title, ""]
        lines += _table(["", *(f"{n:,}" for n in lengths)], rows)
    measured = [setting for setting in report.settings if setting.bands]
    if measured:
        edges = sorted(
            {(band.start, band.end) for one in measured for band in one.bands}
        )
        rows = []
        for setting in measured:
            by_edge = {
                (b.start, b.end): phrases.number(b.perplexity) for b in setting.bands
            }
            rows.append(
                [labels[setting.name], *(by_edge.get(edge, "–") for edge in edges)]
            )
        lines += [
            "",
            f"Perplexity by position [95 %], {phrases.document_texts(report)}:",
            "",
        ]
        lines += _table(["up to token", *(f"{end:,}" for _, end in edges)], rows)
    caches = (
        f"{labels[setting.name]}: {cache}"
        for setting in report.settings
        if (cache := phrases.cache(setting)) is not None
    )
    notes = [*caches, *report.notes]
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    made = f"Measured with ggext {report.ggext} on llama.cpp {report.llama_cpp}:"
    return "\n".join([*lines, "", made, "", f"    {command}", ""])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in lines
    ]
