"""Line plots as inline SVG: axes with round ticks, lines, interval bands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

MOST_POINTS = 500
COLORS = ("#1f6feb", "#8b949e", "#bf5af2", "#d29922")


class Line(NamedTuple):
    label: str
    points: list[tuple[float, float]]
    band: list[tuple[float, float, float]] = []  # (x, low, high)
    thin: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover the range.

    >>> ticks(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    if not high > low:
        high = low + 1
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(float(i * step), 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Short and readable.

    >>> number(50000), number(2_500_000), number(-21.5), number(0.00071)
    ('50k', '2.5M', '-21.5', '0.00071')
    """
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def thin_out(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS points: means of neighbors, so that a dense curve keeps its course."""
    if len(points) <= MOST_POINTS:
        return points
    size = -(-len(points) // MOST_POINTS)
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(p[0] for p in c) / len(c), sum(p[1] for p in c) / len(c)) for c in chunks]


def plot(
    lines: Sequence[Line],
    x_title: str,
    y_title: str,
    *,
    width: int = 860,
    height: int = 320,
    reference: tuple[float, str] | None = None,
) -> str:
    """An SVG picture; `reference` is (value, label) of a dashed horizontal line. Without a point: a sentence that says so."""
    lines = [line for line in lines if line.points]
    if not lines:
        return f'<p class="empty">No {escape(y_title)} was recorded.</p>'
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [v for line in lines for _, *pair in line.band for v in pair]
    if reference:
        ys.append(reference[0])
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    x0 = min(x0, 0.0) if x0 < 0.2 * x1 else x0
    if x1 <= x0:
        x0, x1 = x0 - 0.5, x1 + 0.5
    margin = 0.06 * (y1 - y0) or max(1e-9, abs(y0) * 0.1) or 1.0
    y0, y1 = y0 - margin, y1 + margin
    left, right, top, bottom = 64, 12, 26, 44

    def at_x(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (width - left - right)

    def at_y(y: float) -> float:
        return height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_title)} over {escape(x_title)}">']
    for y in ticks(y0, y1, 5):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{at_y(y) + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in ticks(x0, x1, 7 if width > 500 else 4):
        parts.append(f'<text x="{at_x(x):.1f}" y="{height - bottom + 18}" text-anchor="middle">{number(x)}</text>')
    parts.append(
        f'<text class="title" x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_title)}</text>'
    )
    parts.append(
        f'<text class="title" transform="translate(14 {(top + height - bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
    )
    if reference:
        y = at_y(reference[0])
        parts.append(f'<line class="reference" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{width - right - 4}" y="{y - 5:.1f}" text-anchor="end">{escape(reference[1])}</text>')
    legend_x = left + 4
    for line, color in zip(lines, COLORS * len(lines), strict=False):
        if line.band:
            outline = [(x, high) for x, _, high in line.band] + [(x, low) for x, low, _ in reversed(line.band)]
            parts.append(f'<polygon fill="{color}" opacity="0.16" points="{_coordinates(outline, at_x, at_y)}"/>')
        points = thin_out(line.points)
        coordinates = _coordinates(points, at_x, at_y)
        parts.append(
            f'<polyline data-label="{escape(line.label)}" fill="none" stroke="{color}" stroke-width="{1.2 if line.thin else 2.4}" points="{coordinates}"/>'
        )
        if len(points) <= 60 and not line.thin:
            parts += [
                f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{color}"><title>{number(x)}: {number(y)}</title></circle>'
                for x, y in points
            ]
        if len(lines) > 1 or line.band:
            parts.append(f'<rect x="{legend_x}" y="8" width="14" height="4" fill="{color}"/>')
            parts.append(f'<text x="{legend_x + 20}" y="14">{escape(line.label)}</text>')
            legend_x += 34 + 7 * len(line.label)
    return "".join([*parts, "</svg>"])


def _coordinates(points: list[tuple[float, float]], at_x: Callable[[float], float], at_y: Callable[[float], float]) -> str:
    return " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)
