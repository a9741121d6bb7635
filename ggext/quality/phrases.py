"""Figures as people read them, the same in the terminal, the page and the card."""

from __future__ import annotations

import math

from ggext.footprint.cache import is_quantized
from ggext.quality.documents import KeyBand
from ggext.quality.report import EvalReport, SettingReport
from ggext.quality.scoring import NOLIMA_SHARE, RULER_THRESHOLD, Reach
from ggext.quality.statistics import Estimate

DEFINITIONS = {
    "ruler": f"score at least {100 * RULER_THRESHOLD:.1f} % (RULER)",
    "nolima": f"at least {NOLIMA_SHARE:g} × its own short score (NoLiMa)",
}
#: What is said of both definitions together.
BOUND = "the lower 95 % bound counts, at this length and all shorter ones"


def labels(report: EvalReport) -> dict[str, str]:
    """A row's label by its setting's name: a letter where there are several, and the file's name
    where there are several files."""
    files = {setting.file for setting in report.settings}
    reached = {}
    for i, setting in enumerate(report.settings):
        label = setting.name
        if len(files) == 1 and len(report.settings) > 1:
            label = label.removeprefix(f"{setting.file}, ")
        if len(report.settings) > 1:
            label = f"{letter(i)} · {label}"
        reached[setting.name] = label
    return reached


def letters(report: EvalReport) -> dict[str, str]:
    """The letter of each setting, by its name."""
    return {setting.name: letter(i) for i, setting in enumerate(report.settings)}


def letter(index: int) -> str:
    """A, B ... Z, AA, AB ..."""
    head = letter(index // 26 - 1) if index >= 26 else ""
    return head + chr(ord("A") + index % 26)


def texts(fewest: int, most: int | None = None) -> str:
    """Such as 1 text, 8 texts, 2 to 4 texts; one has no interval."""
    most = fewest if most is None else most
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"{count} text" if most == 1 else f"{count} texts"


def document_texts(report: EvalReport) -> str:
    """Of how many texts the figures by position are."""
    units = [band.perplexity.units for one in report.settings for band in one.bands]
    reached = texts(min(units), max(units))
    return (
        f"{reached}; a figure of one text has no interval"
        if min(units) == 1
        else reached
    )


def share(estimate: Estimate) -> str:
    """A share with its interval."""
    return f"{100 * estimate.value:.0f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def number(estimate: Estimate, digits: int = 2) -> str:
    """A figure with its interval, which one text alone does not have."""
    value = _sized(estimate.value, digits)
    if not math.isfinite(estimate.high) or estimate.units < 2:
        return value
    return f"{value} [{_sized(estimate.low, digits)}, {_sized(estimate.high, digits)}]"


def _sized(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.3g}"


def change(estimate: Estimate) -> str:
    """A relative change in per cent with its interval."""
    value = f"{100 * estimate.value:+.1f} %"
    if not math.isfinite(estimate.high) or estimate.units < 2:
        return value
    return f"{value} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def reach(reached: Reach) -> str:
    """An effective context, and what is known of the next longer length."""
    if reached.threshold is None:
        return "none: no answer was right on the shortest texts"
    words = "not shown" if reached.length is None else f"{reached.length:,} tokens"
    return f"{words} ({reach_note(reached)})"


def reach_note(reached: Reach) -> str:
    """Why it is not longer."""
    if reached.next_length is None:
        return "the longest that was measured"
    if reached.decided:
        return f"{reached.next_length:,} falls below"
    return f"{reached.next_length:,} is open: too few texts"


def cache(setting: SettingReport) -> str | None:
    """What llama.cpp does with a quantized cache before it quantizes it; None: with no other."""
    if not is_quantized(setting.kv_type):
        return None
    turned = " and ".join(setting.rotated) or "nothing"
    return f"KV cache {setting.kv_type}: {turned} rotated (Hadamard) before it is quantized"


def key_band(band: KeyBand) -> str:
    """Perplexity of a band's key tokens, and how many there are."""
    return "–" if band.perplexity is None else f"{band.perplexity:.2f} ({band.count:,})"


def price(setting: SettingReport) -> str:
    """What the scaling costs on short texts."""
    if setting.price is None:
        return "–"
    return f"{change(setting.price)} perplexity on {setting.price_length:,} tokens"
