"""RoPE tables and proofs as pictures (PNG, SVG or PDF by the file's ending)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ggext.errors import MissingExtraError, OutputError, UsageError
from ggext.gguf.writer import whole_file
from ggext.inspect import Inspection, Pair
from ggext.proof.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ggext.rope.scaling import RopeTable

_FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
_COLOURS = {"kept": "#2a78a0", "blended": "#d18f1f", "interpolated": "#b8472f"}


def check_plot(path: Path, command: str) -> None:
    """Raises UsageError for an unknown ending or a missing folder, MissingExtraError without
    matplotlib."""
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"--plot {path}: the file's ending must be one of {', '.join(_FORMATS)}"
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"--plot {path}: the folder {path.parent} does not exist; make it first"
        )
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingExtraError("matplotlib", "plot", command) from None


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path, 0) as file:
        figure.savefig(file, format=_FORMATS[path.suffix.lower()], dpi=150)


def plot_table(inspection: Inspection, path: Path) -> None:
    """Wavelength of each pair, against the trained and the extended context."""
    check_plot(path, "inspect --plot")
    pairs = [p for p in inspection.pairs if p.wavelength < float("inf")]
    if not pairs:
        raise OutputError(
            f"{inspection.path} has no RoPE table to draw: {inspection.rope_unknown}"
        )
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    _draw_pairs(axes, pairs)
    _draw_context(axes, inspection.trained_context, "trained", ":")
    if inspection.context != inspection.trained_context:
        _draw_context(axes, inspection.context, "context", "--")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        yscale="log",
        xlabel="pair of dimensions",
        ylabel="tokens for a full turn (wavelength)",
    )
    if inspection.sliding_rope is not None:
        _draw_sliding(axes, inspection, inspection.sliding_rope)
    title = inspection.name or Path(inspection.path).name
    axes.set_title(f"{title}: {_what(inspection)}", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    _save(figure, path)


def _draw_pairs(axes: Axes, pairs: Sequence[Pair]) -> None:
    """Each pair as a point in its treatment's colour, over the line without scaling."""
    axes.plot(
        [p.index for p in pairs],
        [p.wavelength / p.slowdown for p in pairs],
        color="0.6",
        linewidth=1,
        label="without scaling",
    )
    for treatment, colour in _COLOURS.items():
        chosen = [p for p in pairs if p.treatment == treatment]
        if chosen:
            axes.plot(
                [p.index for p in chosen],
                [p.wavelength for p in chosen],
                "o",
                color=colour,
                markersize=4,
                label=f"{treatment} ({len(chosen)} pairs)",
            )


def _draw_context(axes: Axes, tokens: int, name: str, linestyle: str) -> None:
    """A level line at this many tokens, with its name."""
    axes.axhline(tokens, color="0.3", linestyle=linestyle, linewidth=1)
    axes.text(0, tokens, f"{name} {tokens:,}", va="bottom", fontsize=8)


def _draw_sliding(axes: Axes, inspection: Inspection, table: RopeTable) -> None:
    count = inspection.layers.count("unscaled")
    axes.plot(
        range(len(table.wavelengths)),
        table.wavelengths,
        "--",
        color="#5b8c3a",
        linewidth=1.2,
        label=f"sliding layers ({count} of {len(inspection.layers)}), not scaled",
    )


def _what(inspection: Inspection) -> str:
    """Method, factor and context, in a user's words."""
    trained = inspection.trained_context
    context = inspection.context
    if inspection.method == "none":
        return f"no scaling, {context:,} tokens as trained"
    gain = inspection.rope.attention_factor if inspection.rope else 1.0
    words = (
        f"{inspection.method} ×{context / trained:g}, {trained:,} → {context:,} tokens"
    )
    return f"{words}, attention factor {gain:.4f}" if gain != 1.0 else words


def plot_report(report: Report, path: Path) -> None:
    """Frequencies wanted and effective, and the error of each kernel against the position."""
    check_plot(path, "verify --plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_frequencies(report, left)
    _plot_kernels(report, right)
    factor = report.scaling.get("factor")
    method = report.scaling["method"] + (f" ×{factor:g}" if factor is not None else "")
    figure.suptitle(
        f"{Path(report.file).name}: {method}\n{report.verdict}", fontsize=11
    )
    _save(figure, path)


def _plot_frequencies(report: Report, axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    turning = [row for row in report.pairs if row.wanted > 0]
    index = [row.pair for row in turning]
    axes.plot(
        index,
        [row.wanted for row in turning],
        color="0.6",
        linewidth=4,
        label="asked for",
    )
    axes.plot(
        index,
        [row.file for row in turning],
        color=_COLOURS["kept"],
        linewidth=1.2,
        label="what the file says",
    )
    executed = [(row.pair, row.executed) for row in turning if row.executed is not None]
    if executed:
        axes.plot(
            *zip(*executed, strict=True),
            ".",
            color=_COLOURS["interpolated"],
            markersize=5,
            label="what llama.cpp executes",
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        yscale="log",
        xlabel="pair of dimensions",
        ylabel="radians that it turns per token",
    )
    axes.set_title("Speed of each pair: the three should lie on each other", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _plot_kernels(report: Report, axes: Axes) -> None:
    names = list(dict.fromkeys(row.kernel for row in report.kernels))
    for name, colour in zip(
        names, ("#2a78a0", "#b8472f", "#d18f1f", "#5b8c3a", "0.4"), strict=False
    ):
        rows = [
            row for row in report.kernels if row.kernel == name and row.position > 0
        ]
        axes.plot(
            [row.position for row in rows],
            [max(row.error, 1e-9) for row in rows],
            ".-",
            color=colour,
            linewidth=1,
            markersize=4,
            label=name,
        )
    first = names[1:2]  # after ggext's own
    allowed = [
        row for row in report.kernels if row.kernel in first and row.position > 0
    ]
    if allowed:
        axes.plot(
            [row.position for row in allowed],
            [row.bound for row in allowed],
            ":",
            color="0.2",
            linewidth=1.2,
            label="allowed for llama.cpp (32-bit angles)",
        )
    axes.axvline(report.context, color="0.3", linestyle="--", linewidth=1)
    axes.text(
        report.context,
        1.5e-7,  # between the curves of ggext and of llama.cpp
        f" context {report.context:,}",
        rotation=90,
        va="bottom",
        ha="right",
        fontsize=8,
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="position, tokens",
        ylabel="worst error of a rotated value of 1",
    )
    axes.set_title(
        "Error of the rotation: points below the dotted line are right", fontsize=9
    )
    axes.set_ylim(1e-9, 30)
    if names:
        axes.legend(fontsize=8, frameon=False, loc="upper left")
