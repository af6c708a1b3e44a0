"""Line plots as inline SVG: axes with round ticks, lines, interval bands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

MOST_POINTS = 500
MOST_CELLS = 60
WHITE, RED, BLUE = (0xF7, 0xF7, 0xF7), (0xB2, 0x18, 0x2B), (0x21, 0x66, 0xAC)  # told apart by the color-blind, too
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


def raster(
    rows: Sequence[Sequence[float | None]], x_title: str, y_title: str, legend: str, *, width: int = 860, height: int = 320
) -> str:  # fmt: skip
    """A picture of numbers as colored cells, row 0 on top; None is left open. 0 is white, the largest number blue, or where some are negative
    red, and those blue. More than MOST_CELLS rows or columns are drawn as means of blocks. `legend` says what the numbers are."""
    block_rows, block_columns = (-(-n // MOST_CELLS) for n in (len(rows), max(map(len, rows), default=0)))
    if not block_columns:
        return f'<p class="empty">No {escape(y_title)} was recorded.</p>'
    blocks = [
        [
            _mean([x for row in rows[i : i + block_rows] for x in row[j : j + block_columns]])
            for j in range(0, len(rows[0]), block_columns)
        ]
        for i in range(0, len(rows), block_rows)
    ]
    most = max((abs(x) for row in blocks for x in row if x is not None), default=0.0) or 1.0
    least = -most if any(x < 0 for row in blocks for x in row if x is not None) else 0.0
    legend = f"{legend}, from {number(least)} to {number(most)}"
    left, right, top, bottom = 64, 12, 26, 44
    wide, high_cell = (width - left - right) / len(blocks[0]), (height - top - bottom) / len(blocks)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(legend)}">']
    parts.append(f'<text x="{left}" y="14">{escape(legend)}</text>')
    for i, row in enumerate(blocks):
        for j, x in enumerate(row):
            place = (
                f'x="{left + j * wide:.1f}" y="{top + i * high_cell:.1f}" width="{wide + 0.3:.1f}" height="{high_cell + 0.3:.1f}"'
            )
            where = f"{i * block_rows}, {j * block_columns}"
            if x is not None:
                parts.append(f'<rect {place} fill="{_color(x, least, most)}"><title>{where}: {number(x)}</title></rect>')
    for k in ticks(0, max(len(blocks) * block_rows - 1, 1), 5):
        if k < len(rows) and k == int(k):
            parts.append(
                f'<text x="{left - 8}" y="{top + (k / block_rows + 0.5) * high_cell + 4:.1f}" text-anchor="end">{number(k)}</text>'
            )
    for k in ticks(0, max(len(blocks[0]) * block_columns - 1, 1), 7):
        if k < len(rows[0]) and k == int(k):
            parts.append(
                f'<text x="{left + (k / block_columns + 0.5) * wide:.1f}" y="{height - bottom + 18}" text-anchor="middle">{number(k)}</text>'
            )
    parts.append(
        f'<rect x="{left}" y="{top}" width="{width - left - right}" height="{height - top - bottom}" fill="none" class="grid"/>'
    )
    parts.append(
        f'<text class="title" x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_title)}</text>'
    )
    parts.append(
        f'<text class="title" transform="translate(14 {(top + height - bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
    )
    if block_rows * block_columns > 1:
        parts.append(f'<text x="{width - right}" y="14" text-anchor="end">cells are means of {block_rows} x {block_columns}</text>')
    return "".join([*parts, "</svg>"])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return sum(known) / len(known) if known else None


def _color(x: float, low: float, high: float) -> str:
    """
    >>> _color(0.0, -1.0, 1.0), _color(1.0, -1.0, 1.0), _color(1.0, 0.0, 1.0)
    ('#f7f7f7', '#b2182b', '#2166ac')
    """
    middle = max(low, 0.0) if low * high < 0 else low
    end = RED if low * high < 0 and x > middle else BLUE
    far = high - middle if x > middle else middle - low
    share = min(1.0, abs(x - middle) / far) if far else 0.0
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(WHITE, end, strict=True))
