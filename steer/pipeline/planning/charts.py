"""The page's curves as SVG: means with their intervals along one axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from steer.core.intervals import Estimate
from steer.pipeline.report.plots import number, ticks


_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 128, 24, 44
_LINE = 16  # between labels


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: What stands at its end.
        points: Where, and the mean there with its interval.
        notes: A tooltip for each point; none where there are fewer.
    """

    name: str
    points: tuple[tuple[float, Estimate], ...]
    notes: tuple[str, ...] = ()


def chart(curves: Sequence[Curve], *, along: str, name: str, log: bool = False) -> Markup:
    """The curves, each with a band for its intervals.

    Args:
        curves: Of one unit.
        along: What the horizontal axis is.
        name: What the vertical axis is.
        log: Whether the horizontal axis is logarithmic.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return Markup("")
    frame = _Frame(curves, log)
    words = "; ".join(f"{curve.name}: {_in_words(curve)}" for curve in curves)
    out = [
        f'<svg class="plot curves" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(f"{name} along {along}. {words}")}">',
        *frame.axes(name, along),
    ]
    heights = _apart([frame.y(curve.points[-1][1].mean) for curve in curves])
    for colour, (curve, height) in enumerate(zip(curves, heights, strict=True)):
        out += _drawn(frame, curve, colour % 6, height)
    return Markup("".join([*out, "</svg>"]))


class _Frame:
    """The chart's coordinates."""

    def __init__(self, curves: Sequence[Curve], log: bool) -> None:
        self.log = log
        values = [v for c in curves for _, e in c.points for v in (e.mean, e.low, e.high)]
        known = [v for v in values if v is not None]
        pad = 0.06 * (max(known) - min(known)) or 0.05 * abs(known[0]) or 0.05
        self.low, self.high = min(known) - pad, max(known) + pad
        self.places = sorted({x for c in curves for x, _ in c.points})
        self.first, self.last = self._on(self.places[0]), self._on(self.places[-1])

    def _on(self, x: float) -> float:
        return math.log2(x) if self.log else x

    def x(self, value: float) -> float:
        share = (self._on(value) - self.first) / ((self.last - self.first) or 1.0)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    def axes(self, name: str, along: str) -> list[str]:
        """Grid, tick labels and the names of both axes."""
        out, right, bottom = [], _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        for value in ticks(self.low, self.high):
            y, label = self.y(value), f"{value:.4g}".replace("-", "−")
            out.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
            out.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{label}</text>')
        taken = -math.inf
        for place in self.places:
            x = self.x(place)
            if x - taken >= 30:
                taken = x
                out.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{place:g}</text>')
        out.append(f'<text class="axis" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" ')
        out.append(f'text-anchor="middle">{escape(along)}</text>')
        out.append(f'<text class="axis" x="4" y="13">{escape(name)}</text>')
        return out


def _drawn(frame: _Frame, curve: Curve, colour: int, height: float) -> list[str]:
    """Band, line, dots and the name at the end."""
    spots = [(frame.x(x), e) for x, e in curve.points]
    upper = [f"{x},{frame.y(e.mean if e.high is None else e.high)}" for x, e in spots]
    lower = [f"{x},{frame.y(e.mean if e.low is None else e.low)}" for x, e in spots]
    line = " ".join(f"{x},{frame.y(e.mean)}" for x, e in spots)
    out = [
        f'<g class="curve k{colour}"><polygon points="{" ".join(upper + lower[::-1])}"/>',
        f'<polyline points="{line}"/>',
    ]
    for place, (x, e) in enumerate(spots):
        note = curve.notes[place] if place < len(curve.notes) else ""
        title = f"{curve.name}: {number(e.mean)} at {curve.points[place][0]:g}"
        title = f"{title}, {note}" if note else title
        out.append(f'<circle cx="{x}" cy="{frame.y(e.mean)}" r="4"><title>{escape(title)}')
        out.append("</title></circle>")
    x = spots[-1][0] + 10
    return [*out, f'<text x="{x}" y="{height + 4}">{escape(curve.name)}</text></g>']


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights for labels, none closer to another than a line."""
    placed: dict[int, float] = {}
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        least = max(placed.values(), default=-math.inf) + _LINE
        placed[index] = max(heights[index], least)
    return [placed[index] for index in range(len(heights))]


def _in_words(curve: Curve) -> str:
    return ", ".join(f"{number(e.mean)} at {x:g}" for x, e in curve.points)
