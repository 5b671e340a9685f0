"""Line charts as inline SVG, so that a report needs no script and no picture to show its curves.

Only numbers made here and escaped text reach the markup. Colors come from the style sheet (classes ``c0`` to ``c5``),
which knows light and dark.
"""

from __future__ import annotations

import math
from html import escape

from medmae.report.values import Chart, Curve

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 40
MOST_POINTS = 600  # per curve: more than there are pixels would only make the file larger
COLORS = 6


def chart_svg(chart: Chart) -> str:
    """The chart as an SVG element; a line of text where there is nothing to draw."""
    curves = [_thinned(_drawable(curve, log=chart.log)) for curve in chart.curves]
    points = [(x, y) for curve in curves for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
    if not points:
        return '<p class="quiet">no values yet</p>'
    xs, ys = [p[0] for p in points], [math.log10(p[1]) if chart.log else p[1] for p in points]
    x_axis = _axis(min(xs), max(xs), tight=True)
    y_axis = _log_axis(min(ys), max(ys)) if chart.log else _axis(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if chart.log else y
        across = (x - x_axis[0]) / (x_axis[1] - x_axis[0])
        up = (y - y_axis[0]) / (y_axis[1] - y_axis[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [_grid(chart, x_axis, y_axis, place)]
    for number, curve in enumerate(curves):
        dashed = " dashed" if curve.dashed else ""
        for piece in _pieces(curve):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in piece))
            if len(piece) == 1:
                x, y = place(*piece[0])
                parts.append(f'<circle class="dot c{number % COLORS}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
            else:
                parts.append(f'<polyline class="line c{number % COLORS}{dashed}" points="{path}"/>')
    words = ", ".join(f"{curve.name}: last {_short(curve.y[-1])}" for curve in curves if curve.y)
    label = escape(f"{chart.title}. {words}", quote=True)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def legend(chart: Chart) -> str:
    """Names of the curves with their colors and last values, as HTML."""
    items = []
    for number, curve in enumerate(chart.curves):
        finite = [y for y in curve.y if math.isfinite(y)]
        last = f" <b>{_short(finite[-1])}</b>" if finite else ""
        items.append(f'<li><span class="key c{number % COLORS}"></span>{escape(curve.name)}{last}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _drawable(curve: Curve, *, log: bool) -> Curve:
    """Values that cannot be drawn as gaps, positions in order."""
    pairs = [(float(x), float(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    pairs.sort(key=lambda pair: pair[0])
    pairs = [(x, y if math.isfinite(y) and (y > 0 or not log) else math.nan) for x, y in pairs if math.isfinite(x)]
    return Curve(curve.name, tuple(x for x, _ in pairs), tuple(y for _, y in pairs), curve.dashed)


def _thinned(curve: Curve) -> Curve:
    """Means over equal runs of points where there are too many."""
    run = math.ceil(len(curve.x) / MOST_POINTS)
    if run <= 1:
        return curve
    xs, ys = [], []
    for start in range(0, len(curve.x), run):
        finite = [y for y in curve.y[start : start + run] if math.isfinite(y)]
        xs.append(sum(curve.x[start : start + run]) / len(curve.x[start : start + run]))
        ys.append(sum(finite) / len(finite) if finite else math.nan)
    return Curve(curve.name, tuple(xs), tuple(ys), curve.dashed)


def _pieces(curve: Curve) -> list[list[tuple[float, float]]]:
    """The runs of finite points."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _axis(low: float, high: float, *, tight: bool = False) -> tuple[float, float, list[float]]:
    """Ends and round ticks."""
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= 6)
    if not tight:
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    first = math.ceil(low / step - 1e-9)
    ticks = [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]
    return low, high, ticks


def _log_axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Ends and ticks as logarithms: at 1, 2 and 5 times powers of ten."""
    pad = max(0.02, 0.04 * (high - low))
    low, high = low - pad, high + pad
    ticks = [math.log10(k) + power for power in range(math.floor(low), math.ceil(high) + 1) for k in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) < 3:  # a narrow range: round numbers of a linear axis
        ticks = [math.log10(value) for value in _axis(10**low, 10**high, tight=True)[2] if value > 0]
    while len(ticks) > 8:
        ticks = ticks[::2]
    return low, high, ticks


def _grid(
    chart: Chart, x_axis: tuple[float, float, list[float]], y_axis: tuple[float, float, list[float]], place
) -> str:  # type: ignore[no-untyped-def]
    parts = []
    for tick in y_axis[2]:
        value = 10**tick if chart.log else tick
        _, y = place(x_axis[0], value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    bottom = HEIGHT - BOTTOM
    for tick in x_axis[2]:
        x, _ = place(tick, 10 ** y_axis[0] if chart.log else y_axis[0])
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    if chart.y_label:
        at = (TOP + bottom) / 2
        parts.append(
            f'<text class="tick" x="14" y="{at}" text-anchor="middle" transform="rotate(-90 14 {at})">'
            f"{escape(chart.y_label)}</text>"
        )
    return "".join(parts)


def _short(value: float) -> str:
    """A number in four digits or fewer."""
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.001:
        return f"{value:.2g}"
    text = f"{value:.4g}"
    return text.rstrip("0").rstrip(".") if "." in text else text
