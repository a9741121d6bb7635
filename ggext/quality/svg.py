"""Line charts and grids as SVG text: readable in greyscale, at 800 pixels, without any script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

#: Dark enough on white, apart in luminance; marker and dash tell lines apart without colour.
_COLOURS = ("#14213d", "#c2571a", "#2f7fb8", "#7a8b2d", "#8a5aa8", "#555555")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "1 2")
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 12, 14, 42
#: Of matplotlib's cividis: luminance rises evenly, so a greyscale print keeps the order.
_CIVIDIS = (
    (0, 34, 78),
    (66, 78, 108),
    (124, 123, 120),
    (187, 175, 113),
    (254, 232, 56),
)


@dataclass(frozen=True)
class Line:
    """A line with a band. ``points``: x, y and the bounds of y; None: no band there."""

    name: str
    points: tuple[tuple[float, float, float | None, float | None], ...]


@dataclass(frozen=True)
class Axes:
    """What a chart's axes say. ``marks``: x values with a word, as vertical lines; ``levels``: y
    values with a word, as horizontal ones."""

    x_name: str
    y_name: str
    marks: tuple[tuple[float, str], ...] = ()
    levels: tuple[tuple[float, str], ...] = ()
    # None: from the data.
    y_range: tuple[float, float] | None = None
    y_log: bool = False
    # x as powers of two, or as it is.
    x_log: bool = True


class _Scale:
    """Data to pixels."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, log: bool
    ) -> None:
        self._log = log
        self.low = low
        self.high = high if high > low else low + 1
        self._start = start
        self._end = end

    def __call__(self, value: float) -> float:
        low = self.low
        high = self.high
        at = min(max(value, self.low), self.high)
        if self._log:
            low = math.log2(low)
            high = math.log2(high)
            at = math.log2(at)
        return self._start + (at - low) / (high - low) * (self._end - self._start)


def chart(
    lines: Sequence[Line], axes: Axes, width: int = 760, height: int = 300
) -> str:
    """A chart of lines with their 95 % bands and a legend below."""
    xs = [point[0] for line in lines for point in line.points] + [
        mark[0] for mark in axes.marks
    ]
    low, high = axes.y_range or _bounds(lines)
    x_low = min(xs)
    x_high = max(xs)
    if axes.x_log:
        x_low = x_low / 1.15
        x_high = x_high * 1.15
    x = _Scale(x_low, x_high, _LEFT, width - _RIGHT, log=axes.x_log)
    y = _Scale(low, high, height - _BOTTOM, _TOP, log=axes.y_log)
    legend = 20 * ((len(lines) + 1) // 2)
    parts = [_open(width, height + legend, f"{axes.y_name} against {axes.x_name}")]
    places = [y(point[1]) for line in lines for point in line.points]
    low_lines = sum(place > height / 2 for place in places) > len(places) / 2
    parts += _frame(axes, x, y, width, height, low_lines)
    parts += [_band(line, i, x, y) for i, line in enumerate(lines)]
    parts += [_line(line, i, x, y) for i, line in enumerate(lines)]
    for i, line in enumerate(lines):
        parts.append(_legend(line.name, i, height, width))
    return "\n".join([*parts, "</svg>"])


def _bounds(lines: Sequence[Line]) -> tuple[float, float]:
    values = [point[1] for line in lines for point in line.points]
    low = min(values)
    high = max(values)
    bounds = [
        value
        for line in lines
        for point in line.points
        for value in point[2:]
        # A band from two texts may be far wider than all that is to be seen.
        if value is not None and math.isfinite(value) and low / 2 <= value <= 2 * high
    ]
    return min([low, *bounds]) * 0.97, max([high, *bounds]) * 1.03


def _frame(
    axes: Axes, x: _Scale, y: _Scale, width: int, height: int, low_lines: bool
) -> list[str]:
    bottom = height - _BOTTOM
    right = width - _RIGHT
    parts = [*_x_axis(axes, x, bottom, low_lines), *_y_axis(axes, y, right)]
    parts.append(
        f'<rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" '
        'fill="none" stroke="#444"/>'
    )
    parts.append(_text((_LEFT + right) / 2, height - 8, axes.x_name, "middle"))
    parts.append(_turned(14, (bottom + _TOP) / 2, axes.y_name, "middle"))
    return parts


def _x_axis(axes: Axes, x: _Scale, bottom: int, low_lines: bool) -> list[str]:
    """The words of the marks stand where most of the lines do not."""
    parts = []
    ticks = _powers(x.low, x.high) if axes.x_log else _ticks(x.low, x.high, log=False)
    for value in ticks:
        parts.append(_text(x(value), bottom + 16, _short(value), "middle"))
        parts.append(_stroke((x(value), bottom, x(value), bottom + 4), "#444"))
    for value, word in axes.marks:
        parts.append(_stroke((x(value), _TOP, x(value), bottom), "#444", "6 3"))
        end, anchor = (_TOP + 6, "end") if low_lines else (bottom - 6, "start")
        parts.append(_turned(x(value) - 4, end, word, anchor))
    return parts


def _y_axis(axes: Axes, y: _Scale, right: int) -> list[str]:
    parts = []
    for value in _ticks(y.low, y.high, log=axes.y_log):
        parts.append(_stroke((_LEFT, y(value), right, y(value)), "#ddd"))
        parts.append(_text(_LEFT - 6, y(value) + 4, _short(value), "end"))
    for value, word in axes.levels:
        if y.low <= value <= y.high:
            parts.append(_stroke((_LEFT, y(value), right, y(value)), "#444", "3 3"))
            parts.append(_text(_LEFT + 6, y(value) - 4, word, "start"))
    return parts


def _stroke(
    ends: tuple[float, float, float, float], colour: str, dash: str = ""
) -> str:
    x1, y1, x2, y2 = ends
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-dasharray="{dash}"/>'
    )


def _turned(x: float, y: float, text: str, anchor: str) -> str:
    """Text that runs upward."""
    at = f"{x:.1f} {y:.1f}"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" transform="rotate(-90 {at})">'
        f"{escape(text)}</text>"
    )


def _band(line: Line, i: int, x: _Scale, y: _Scale) -> str:
    shown = [(px, low, high) for px, _, low, high in line.points if low is not None]
    if len(shown) < 2:
        return ""
    upper = [f"{x(px):.1f},{y(high):.1f}" for px, _, high in shown if high is not None]
    lower = [f"{x(px):.1f},{y(low):.1f}" for px, low, _ in reversed(shown)]
    colour = _COLOURS[i % len(_COLOURS)]
    return f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" fill-opacity="0.10"/>'


def _line(line: Line, i: int, x: _Scale, y: _Scale) -> str:
    colour = _COLOURS[i % len(_COLOURS)]
    places = [(x(px), y(py)) for px, py, _, _ in line.points]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
    dash = _DASHES[i % len(_DASHES)]
    drawn = (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="{dash}"/>'
    )
    if len(places) > 16:
        return drawn
    return drawn + "".join(_marker(px, py, i) for px, py in places)


def _marker(x: float, y: float, i: int) -> str:
    colour = _COLOURS[i % len(_COLOURS)]
    diamond = (
        f'<polygon points="{x:.1f},{y - 6:.1f} {x + 5:.1f},{y:.1f} {x:.1f},{y + 6:.1f} '
        f'{x - 5:.1f},{y:.1f}"'
    )
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"',
        f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"',
        f'<polygon points="{x:.1f},{y - 5:.1f} {x + 5:.1f},{y + 4:.1f} {x - 5:.1f},{y + 4:.1f}"',
        diamond,
        f'<polygon points="{x - 5:.1f},{y - 4:.1f} {x + 5:.1f},{y - 4:.1f} {x:.1f},{y + 5:.1f}"',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"',
    )
    # The even ones are hollow: a further difference that no printer loses.
    fill = colour if i % 2 == 0 else "#fff"
    return f'{shapes[i % len(shapes)]} fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'


def _legend(name: str, i: int, height: int, width: int) -> str:
    x = _LEFT + (i % 2) * (width - _LEFT) // 2
    y = height + 10 + 20 * (i // 2)
    colour = _COLOURS[i % len(_COLOURS)]
    sample = (
        f'<line x1="{x}" x2="{x + 34}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="{_DASHES[i % len(_DASHES)]}"/>'
    )
    return sample + _marker(x + 17, y, i) + _text(x + 42, y + 4, name, "start")


def grid(
    columns: Sequence[str],
    rows: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    names: tuple[str, str],
) -> str:
    """A heat map of shares, the number in each cell. ``shares``: rows of columns, None: nothing
    there; ``names``: what columns and rows are."""
    wide = 78
    high = 30
    left = 130
    top = 40
    width = (
        left + max(wide * len(columns), 140) + 10
    )  # the columns' name has room over one
    height = top + high * len(rows) + 6
    parts = [
        _open(width, height, f"share of right answers by {names[1]} and {names[0]}")
    ]
    parts.append(_text(left + 4, 14, names[0], "start"))
    parts.append(_text(left - 8, 14, names[1], "end"))
    for i, name in enumerate(columns):
        parts.append(_text(left + wide * (i + 0.5), top - 8, name, "middle"))
    for j, name in enumerate(rows):
        parts.append(_text(left - 8, top + high * (j + 0.5) + 4, name, "end"))
        for i, value in enumerate(shares[j]):
            parts.append(_cell(left + wide * i, top + high * j, wide, high, value))
    return "\n".join([*parts, "</svg>"])


def _cell(x: float, y: float, wide: float, high: float, value: float | None) -> str:
    fill, ink, word = "#fff", "#444", "–"
    if value is not None:
        red, green, blue = _cividis(value)
        fill = f"#{red:02x}{green:02x}{blue:02x}"
        ink = "#fff" if value < 0.55 else "#000"
        word = f"{100 * value:.0f}"
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{wide - 2}" height="{high - 2}" fill="{fill}" '
        f'stroke="#888"/><text x="{x + wide / 2 - 1:.0f}" y="{y + high / 2 + 4:.0f}" '
        f'text-anchor="middle" style="fill:{ink};font-weight:600">{word}</text>'
    )


def _cividis(value: float) -> tuple[int, int, int]:
    at = min(max(value, 0.0), 1.0) * (len(_CIVIDIS) - 1)
    i = min(int(at), len(_CIVIDIS) - 2)
    part = at - i
    mixed = [
        round(a + (b - a) * part)
        for a, b in zip(_CIVIDIS[i], _CIVIDIS[i + 1], strict=True)
    ]
    return mixed[0], mixed[1], mixed[2]


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px" role="img"><title>{escape(title)}</title>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _powers(low: float, high: float) -> list[float]:
    first = math.ceil(math.log2(low))
    last = math.floor(math.log2(high))
    step = max(1, (last - first) // 8 + 1)
    return [2.0**i for i in range(first, last + 1, step)]


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    """About five values that are easy to read."""
    if log:
        span = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        ticks = [
            factor * 10.0**i
            for i in range(span.start - 1, span.stop)
            for factor in (1, 2, 5)
        ]
        inside = [value for value in ticks if low <= value <= high]
        return inside if len(inside) <= 9 else [10.0**i for i in span]
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    while (high - low) / step > 6:
        step *= 2.5 if f"{step:e}"[0] == "2" else 2
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value:.0e}".replace("e+0", "e")
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
