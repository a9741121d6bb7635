"""A report of ``ggext verify`` in words: a line a level, or everything in tables."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggext.rope.recipe import COMMAND_LINE, PROGRAM
from ggext.screen.flags import in_flags

if TYPE_CHECKING:
    from ggext.proof.report import Check, Report

_WIDTH = 80
#: Level → what it says of a file that passes, with the worst value and its tolerance.
_RIGHT = {
    "table": "the file says what was asked for, to {value}",
    "kernel": "rotations on this machine are right to {value} (allowed: {tolerance})",
    "graph": "llama.cpp executes it, right to {value} (allowed: {tolerance})",
    "shift": "a rolled context leaves the cached keys as they were, to {value}",
    "logits": "predicts as the checkpoint does: KL {value} nats (allowed: {tolerance})",
}


def in_short(report: Report) -> str:
    """At most 80 columns; the last line is the verdict."""
    lines = wrapped(
        f"{report.file}: {_method(report)}, {report.context:,} tokens, held to {_source(report)}",
        "",
    )
    levels = dict.fromkeys(check.level for check in report.checks)
    for level in levels:
        checks = [check for check in report.checks if check.level == level]
        lines += _level(level, checks)
    for note in map(in_flags, report.notes):
        level, _, rest = note.partition(": ")
        row = f"{level:8}{'--':8}{rest}" if level in _RIGHT else f"note: {note}"
        lines += wrapped(row, " " * 16)
    if report.published:
        lines += wrapped(f"note: {in_flags(report.published)}", " " * 16)
    return "\n".join([*lines, "", *wrapped(in_flags(report.verdict), "")])


def _method(report: Report) -> str:
    factor = report.scaling.get("factor")
    method = report.scaling["method"]
    if method == "none":
        return "no scaling"
    return f"{method} ×{factor:g}" if factor is not None else str(method)


def _source(report: Report) -> str:
    """Whose word the file was held to, in a user's words."""
    source = report.wanted_from
    for asker in (COMMAND_LINE, PROGRAM):
        recipe_source = f"recipe in the file (by {asker})"
        source = source.replace(recipe_source, "what was asked of ggext convert")
    return source.replace("recipe in the file (by ", "").removesuffix(")")


def _level(level: str, checks: Sequence[Check]) -> list[str]:
    failed = [check for check in checks if not check.passed]
    if not failed:
        worst = max(
            checks,
            key=lambda check: (check.value / (check.tolerance or 1.0), check.value),
        )
        text = _RIGHT[level].format(
            value=f"{worst.value:.1g}", tolerance=f"{worst.tolerance:.1g}"
        )
        return wrapped(f"{level:8}{'ok':8}{text}", " " * 16)
    lines = []
    for check in failed:
        why = in_flags(check.why)
        text = (
            why or f"{check.quantity}: {check.value:.2g}, allowed {check.tolerance:.2g}"
        )
        if why and check.required:
            text = f"{check.quantity} {check.value:.2g}: {why}"
        lines += wrapped(f"{level:8}{_mark(check):8}{text}", " " * 16)
    return lines


def wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )


def in_detail(report: Report) -> str:
    """Every number, however wide."""
    head = ("level", "quantity", "value", "at most", "", "")
    rows = [
        (
            c.level,
            c.quantity,
            f"{c.value:.2g}",
            f"{c.tolerance:.2g}",
            _mark(c),
            c.detail,
        )
        for c in report.checks
    ]
    held = f"held to the {report.wanted_from}"
    lines = [
        f"{report.file}: {report.scaling['method']}, context {report.context:,}, {held}"
    ]
    lines += _columns([head, *rows])
    lines += [
        f"why ({c.level}, {c.quantity}): {in_flags(c.why)}"
        for c in report.checks
        if c.why
    ]
    lines += _kernels(report)
    lines += [f"published: {in_flags(report.published)}"] if report.published else []
    lines += [f"note: {in_flags(note)}" for note in report.notes]
    return "\n".join([*lines, in_flags(report.verdict)])


def _mark(check: Check) -> str:
    if check.passed:
        return "ok"
    return "WRONG" if check.required else "UNSAFE"


def _kernels(report: Report) -> list[str]:
    """A line for each position of the fixed list, a column for each kernel."""
    from ggext.proof.kernels import told_positions

    names = list(dict.fromkeys(row.kernel for row in report.kernels))
    measured = {(row.kernel, row.position): row for row in report.kernels}
    rows: list[tuple[str, ...]] = [("position", *names, "")]
    for position in told_positions(report.context).tolist() if names else []:
        at_position = [measured[name, position] for name in names]
        worst = max(at_position, key=lambda row: row.error)
        outside = "" if worst.inside else "beyond the context; "
        errors = [f"{row.error:.1e}" for row in at_position]
        rows.append((f"{position:,}", *errors, outside + worst.meaning))
    return (
        ["", "worst |Δ| of cos and sin / gain, by kernel", *_columns(rows), ""]
        if names
        else []
    )


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The rows aligned; the last column is as long as it is."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows]
