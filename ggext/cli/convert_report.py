"""What ``ggext convert`` says of a plan, and of the file that it wrote."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import click

from ggext.cli.ready import ready_for
from ggext.screen.flags import in_flags

if TYPE_CHECKING:
    from ggext.convert import Plan
    from ggext.rope.encoding import Encoding


def describe(plan: Plan, name: str | None = None) -> list[str]:
    """The plan in words, a line a thing. ``name``: of the model, ``None`` for that of its path."""
    from ggext.checkpoint.named import shown

    source = plan.source
    size = "in place" if plan.in_place else f"{plan.nbytes:,} bytes to write"
    lines = [
        f"{name or shown(source.path)}: {source.arch}, {len(source.tensors)} tensors, {size}"
    ]
    if source.unrotated:
        lines.append(f"rope: none, {source.unrotated}")
    elif plan.scaling is None or plan.encoding is None:
        lines.append("rope: as in the file, unchanged")
    else:
        parameters = ", ".join(
            f"{name.replace('_', ' ')} {_number(value)}"
            for name, value in plan.scaling.given().items()
            if isinstance(value, (int, float))
        )
        lines.append(
            f"rope: {plan.scaling.method}{' (' + parameters + ')' if parameters else ''}"
        )
        lines += [_context(plan), *_encoding(plan.encoding)]
        if plan.why_not_folded:
            lines.append(f"not folded: {plan.why_not_folded}")
    if plan.types.quantization:
        matrix = f", importance matrix {plan.imatrix.path.name}" if plan.imatrix else ""
        lines.append(
            f"type: {plan.types.quantization} by llama.cpp's quantizer{matrix}"
        )
    return lines + [f"note: {note}" for note in plan.notes]


def echo_wrapped(line: str) -> None:
    """Between words where that is a terminal, which would break them; a program gets its line."""
    line = in_flags(line)
    if not sys.stdout.isatty():
        click.echo(line)
        return
    width = shutil.get_terminal_size().columns
    wrapped = textwrap.wrap(
        line,
        width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    click.echo("\n".join(wrapped))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _context(plan: Plan) -> str:
    """What the model said before, and what the file will say."""
    trained = plan.geometry.trained_context
    key = f"{plan.source.arch}.context_length"
    before = plan.source.fields[key].value if plan.source.is_gguf else trained
    after = plan.fields[key].value
    if before == after:
        line = f"context: {after:,} tokens"
    else:
        line = f"context: {before:,} → {after:,} tokens"
    return line if trained in (before, after) else f"{line}, trained on {trained:,}"


def _encoding(encoding: Encoding) -> list[str]:
    exactness = encoding.exactness
    rolls = "safe to roll" if encoding.shift_safe else "not safe to roll"
    if exactness.is_exact:
        how_exact = (
            f"exact (frequencies {exactness.frequency_error:.1e}, "
            f"gain {exactness.gain_error:.1e})"
        )
    else:
        how_exact = (
            f"the nearest that llama.cpp can do, not exact (frequencies to "
            f"{exactness.frequency_error:.2g})"
        )
    lines = [f"encoding: {encoding.name}, {how_exact}, {rolls}"]
    if encoding.elsewhere is not None:
        lines.append(
            f"in other programs: worst frequency error {encoding.elsewhere.frequency_error:.2g}"
        )
    return lines


def ready(plan: Plan) -> list[str]:
    """For which programs the file that was written is ready; nothing where its RoPE is as it
    was."""
    from ggext.rope.shifts import folding_obstacle

    encoding = plan.encoding
    if encoding is None:
        return []
    return ready_for(
        shift_safe=encoding.shift_safe,
        folded=encoding.name == "folded",
        can_be_folded=encoding.rolls
        and not folding_obstacle(plan.source.arch, plan.geometry),
        elsewhere=encoding.elsewhere,
    )
