"""The page's two plots, as SVG by hand: quality against compute, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from steer.pipeline.report.plots import ticks


WIDTH, HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 150, 26, 46
_LINE, _DODGE = 18, 9
_ROW, _NAMES, _NUMBERS = 34, 170, 190


@dataclass(frozen=True)
class Point:
    """An arm on a plot; `low` and `high` are its interval, or None.

    Attributes:
        label: The arm's, for people.
        x: Compute in plain calls; unused by `forest`.
        mean, low, high: In the reward's shown scale.
        colour: Index of the arm's colour.
        baseline: Whether the others are held against it.
        note: Further words for the tooltip.
    """

    label: str
    x: float
    mean: float
    low: float | None
    high: float | None
    colour: int
    baseline: bool = False
    note: str = ""


def text_of(value: float, digits: int, sign: bool = False) -> str:
    """A number with so many digits after the point and a real minus sign."""
    shown = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(shown) == 0:
        shown = shown.lstrip("+-")
    return shown.replace("-", "−")


def digits_for(points: Sequence[Point]) -> int:
    """Digits after the point that show the narrowest interval, at most four."""
    halves = [(p.high - p.low) / 2 for p in points if p.low is not None and p.high is not None]
    halves = [half for half in halves if half > 0]
    if not halves:
        return 3
    return min(4, max(0, 1 - math.floor(math.log10(min(halves)))))


def frontier(points: Sequence[Point]) -> list[Point]:
    """The arms that no other beats at equal or less compute, by compute."""
    best, found = -math.inf, []
    for point in sorted(points, key=lambda p: (p.x, -p.mean)):
        if point.mean > best:
            best = point.mean
            found.append(point)
    return found


class _Frame:
    def __init__(self, points: Sequence[Point]) -> None:
        values = [v for p in points for v in (p.mean, p.low, p.high) if v is not None]
        pad = 0.08 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 0.05
        self.low, self.high = min(values) - pad, max(values) + pad
        logs = [math.log2(max(p.x, 1e-3)) for p in points]
        span = max(logs) - min(logs) or 1.0
        self.left, self.right = min(logs) - 0.08 * span, max(logs) + 0.08 * span

        self.places: list[float] = []
        for point in points:  # whiskers at equal compute stand side by side
            place = self.x(point.x)
            while any(abs(place - other) < _DODGE for other in self.places):
                place += _DODGE
            self.places.append(place)

    def x(self, value: float) -> float:
        share = (math.log2(max(value, 1e-3)) - self.left) / (self.right - self.left)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)


def quality(points: Sequence[Point], reward: str) -> Markup:
    """Mean reward against compute (log scale), with intervals and the best at every price."""
    frame, digits = _Frame(points), digits_for(points)
    words = "; ".join(f"{p.label} {text_of(p.mean, digits)} at {p.x:.3g} times" for p in points)
    out = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"{reward} against compute: {words}")}">'
    ]
    out += _axes(frame, reward)
    best = [frame.places[points.index(p)] for p in frontier(points)]
    pairs = zip(best, frontier(points), strict=True)
    line = " ".join(f"{x},{frame.y(p.mean)}" for x, p in pairs)
    out.append(f'<polyline class="frontier" points="{line}"/>')
    base = next((p for p in points if p.baseline), None)
    if base is not None:
        y = frame.y(base.mean)
        out.append(f'<line class="level base" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" ')
        out.append(f'y1="{y}" y2="{y}"/>')
    heights = _label_heights(points, frame)
    for point, x, y in zip(points, frame.places, heights, strict=True):
        out += _dot(frame, point, x, y, digits)
    return Markup("".join([*out, "</svg>"]))


def _axes(frame: _Frame, reward: str) -> list[str]:
    out = []
    for value in ticks(frame.low, frame.high, 5):
        y = frame.y(value)
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        label = f"{value:.4g}".replace("-", "−")
        out.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{label}</text>')
    marks = _compute_ticks(frame)
    for value in marks:
        x = frame.x(value)
        out.append(f'<text x="{x}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">')
        out.append(f"{value:g}×</text>")
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    out.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">')
    out.append("compute, in plain calls</text>")
    out.append(f'<text class="axis" x="4" y="14">{escape(reward)}</text>')
    return out


def _compute_ticks(frame: _Frame) -> list[float]:
    """Powers of two within the frame; with fewer than two of them, halves between."""
    first, last = math.ceil(frame.left - 1e-9), math.floor(frame.right + 1e-9)
    every = max(1, (last - first) // 7 + 1)
    whole = [2.0**k for k in range(first, last + 1, every)]
    if len(whole) > 2:
        return whole
    low, high = 2.0**frame.left, 2.0**frame.right
    finer = [m * 2.0**k for k in range(first - 1, last + 1) for m in (1.0, 1.5)]
    inner = [value for value in finer if low <= value <= high]
    return inner if len(inner) > 1 else [round(low, 2), round(high, 2)]


def _label_heights(points: Sequence[Point], frame: _Frame) -> list[float]:
    """A height for every label, next to its point and apart from those already placed."""
    order = sorted(range(len(points)), key=lambda i: -points[i].mean)
    placed: dict[int, float] = {}
    for i in order:
        y = frame.y(points[i].mean)
        near = [placed[j] for j in placed if abs(frame.places[j] - frame.places[i]) < 130]
        while any(abs(y - other) < _LINE - 1e-6 for other in near):
            y = max(other for other in near if abs(y - other) < _LINE - 1e-6) + _LINE
        placed[i] = y
    return [placed[i] for i in range(len(points))]


def _dot(frame: _Frame, point: Point, x: float, label: float, digits: int) -> list[str]:
    y = frame.y(point.mean)
    title = f"{point.label}: {text_of(point.mean, digits)}{_interval(point, digits)}, "
    title += f"{point.x:.3g}× a plain call{point.note}"
    out = [f'<g class="arm c{point.colour}"><title>{escape(title)}</title>']
    if point.low is not None and point.high is not None:
        top, bottom = frame.y(point.high), frame.y(point.low)
        out.append(f'<line class="whisker" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
    out.append(f'<circle cx="{x}" cy="{y}" r="6"/>')
    if abs(label - y) > 2:
        out.append(f'<line class="lead" x1="{x + 6}" y1="{y}" x2="{x + 12}" y2="{label}"/>')
    above = 9 if point.baseline else 0  # off the baseline's own dashes
    out.append(
        f'<text x="{x + 13}" y="{round(label + 4 - above, 1)}">{escape(_cut(point.label, 22))}'
    )
    out.append("</text></g>")
    return out


def forest(points: Sequence[Point], digits: int) -> Markup:
    """Paired differences with their intervals, one row per arm, about a line at nothing."""
    values = [0.0, *(v for p in points for v in (p.mean, p.low, p.high) if v is not None)]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05
    low, high, height = low - pad, high + pad, _ROW * len(points) + 30

    def x(value: float) -> float:
        return round(_NAMES + (value - low) / (high - low) * (WIDTH - _NAMES - _NUMBERS), 1)

    words = "; ".join(f"{p.label} {text_of(p.mean, digits, True)}" for p in points)
    out = [
        f'<svg class="plot forest" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(f"Paired differences: {words}")}">',
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="4" y2="{height - 24}"/>',
    ]
    for value in ticks(low, high, 4):
        out.append(f'<text class="tick" x="{x(value)}" y="{height - 6}" text-anchor="middle">')
        out.append(f"{value:.4g}</text>".replace("-", "−"))
    for row, point in enumerate(points):
        y = _ROW * row + 20
        out.append(f'<g class="arm c{point.colour}">')
        out.append(f'<text x="{_NAMES - 14}" y="{y + 4}" text-anchor="end">')
        out.append(f"{escape(_cut(point.label, 22))}</text>")
        if point.low is not None and point.high is not None:
            out.append(f'<line class="whisker" x1="{x(point.low)}" x2="{x(point.high)}" ')
            out.append(f'y1="{y}" y2="{y}"/>')
        out.append(f'<circle cx="{x(point.mean)}" cy="{y}" r="5.5"/>')
        shown = f"{text_of(point.mean, digits, True)}{_interval(point, digits, True)}"
        out.append(
            f'<text class="value" x="{WIDTH - _NUMBERS + 16}" y="{y + 4}">{shown}</text></g>'
        )
    return Markup("".join([*out, "</svg>"]))


def _interval(point: Point, digits: int, sign: bool = False) -> str:
    if point.low is None or point.high is None:
        return ""
    return f" [{text_of(point.low, digits, sign)}, {text_of(point.high, digits, sign)}]"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
