"""The RoPE table as a picture (PNG, SVG or PDF by the file's ending)."""

from __future__ import annotations

from pathlib import Path

from ggext.errors import MissingExtraError, OutputError, UsageError
from ggext.gguf.writer import replacing
from ggext.inspect import Inspection

_FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
_COLOURS = {"kept": "#2a78a0", "blended": "#d18f1f", "interpolated": "#b8472f"}


def plot_table(inspection: Inspection, path: Path) -> None:
    """Wavelength of each pair, against the trained and the extended context."""
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"--plot {path}: the file's ending must be one of {', '.join(_FORMATS)}")
    pairs = [p for p in inspection.pairs if p.wavelength < float("inf")]
    if not pairs:
        raise OutputError(f"{inspection.path} has no RoPE table to draw: {inspection.rope_unknown}")
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise MissingExtraError("matplotlib", "plot", "inspect --plot") from None

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    unscaled = [p.wavelength / p.slowdown for p in pairs]
    axes.plot([p.index for p in pairs], unscaled, color="0.6", linewidth=1, label="without scaling")
    for treatment, colour in _COLOURS.items():
        chosen = [p for p in pairs if p.treatment == treatment]
        if chosen:
            axes.plot([p.index for p in chosen], [p.wavelength for p in chosen], "o", color=colour, markersize=4,
                      label=f"{treatment} ({len(chosen)} pairs)")  # fmt: skip
    axes.axhline(inspection.trained_context, color="0.3", linestyle=":", linewidth=1)
    axes.text(0, inspection.trained_context, f"trained {inspection.trained_context:,}", va="bottom", fontsize=8)
    if inspection.context != inspection.trained_context:
        axes.axhline(inspection.context, color="0.3", linestyle="--", linewidth=1)
        axes.text(0, inspection.context, f"context {inspection.context:,}", va="bottom", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(yscale="log", xlabel="rotary pair", ylabel="wavelength, tokens")
    gain = inspection.rope.attention_factor if inspection.rope else 1.0
    title = inspection.name or Path(inspection.path).name
    axes.set_title(f"{title}: {inspection.method}, attention factor {gain:.4f}", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    with replacing(path) as beside:
        figure.savefig(beside, format=_FORMATS[path.suffix.lower()], dpi=150)
