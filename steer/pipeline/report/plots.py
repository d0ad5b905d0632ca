"""Small SVG plots for the report, drawn by hand: no script, no fonts, colours from its CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from steer.pipeline.report.descent import title
from steer.pipeline.report.genealogy import Line


WIDTH, HEIGHT = 560, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 84, 22, 42


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that span `low` to `high`, roughly `about` of them."""
    span = max(high - low, 1e-9)
    raw = span / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float | None) -> str:
    """A reward for people: three significant digits or so, a real minus sign."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


class _Frame:
    """The plot's coordinates: `x` in 0..1 of the way, `y` in rewards."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
        self.low, self.high = low - pad, high + pad

    def x(self, at: float) -> float:
        return round(_LEFT + at * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    def axes(self, name: str, along: str) -> list[str]:
        """Grid, tick labels and axis names."""
        out = []
        for value in ticks(self.low, self.high):
            y = self.y(value)
            out.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
            label = f"{value:.4g}".replace("-", "−")
            out.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{label}')
            out.append("</text>")
        for percent in (0, 25, 50, 75, 100):
            x = self.x(percent / 100)
            out.append(f'<text class="tick" x="{x}" y="{HEIGHT - _BOTTOM + 18}" ')
            out.append(f'text-anchor="middle">{percent}%</text>')
        out.append(f'<text class="axis" x="{self.x(0.5)}" y="{HEIGHT - 6}" ')
        out.append(f'text-anchor="middle">of the {along}</text>')
        out.append(f'<text class="axis" x="{_LEFT - 44}" y="13">{escape(name)}</text>')
        return out


def reward_plot(
    lines: Sequence[Line],
    *,
    name: str,
    cuts: Sequence[tuple[float, str]] = (),
    base: float | None = None,
    threshold: float | None = None,
    along: str = "denoising steps",
) -> Markup:
    """Reward over the way, one line per particle: the chosen bold, the dropped fading.

    Args:
        lines: Drawn in order.
        name: The reward's name, for the axis.
        cuts: Places where particles were dropped, with a label each.
        base: The plain call's reward: a dashed level.
        threshold: A gate's bar: a dotted level.
        along: What the way is made of, for the other axis.
    """
    values = [reward for line in lines for _, reward in line.points]
    levels = [v for v in (base, threshold) if v is not None]
    if not values:
        return Markup("")
    frame = _Frame([*values, *levels])
    out = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(_summary(lines, name, base, along))}">'
    ]
    out += frame.axes(name, along)
    for at, label in cuts:
        x = frame.x(at)
        out.append(f'<line class="cut" x1="{x}" x2="{x}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        out.append(f'<text class="cut-label" x="{x}" y="{_TOP - 7}" text-anchor="middle">')
        out.append(f"{escape(label)}</text>")
    out += _levels(frame, base, threshold, lines)
    out += [_line(frame, line) for line in lines]
    out += _winner_label(frame, lines)
    return Markup("".join([*out, "</svg>"]))


def _line(frame: _Frame, line: Line) -> str:
    words = f"particle {title(line.particle)}, {line.state}: " + ", ".join(
        f"{number(reward)} at {at:.0%}" for at, reward in line.points
    )
    path = " ".join(f"{frame.x(at)},{frame.y(reward)}" for at, reward in line.points)
    dots = [
        f'<circle cx="{frame.x(at)}" cy="{frame.y(reward)}" r="{4 if at == 1 else 2.6}"/>'
        for at, reward in line.points
    ]
    base = " plain" if line.particle == 0 else ""
    return (
        f'<g class="particle {line.state}{base}"><title>{escape(words)}</title>'
        f'<polyline points="{path}"/>{"".join(dots)}</g>'
    )


def _levels(
    frame: _Frame, base: float | None, threshold: float | None, lines: Sequence[Line]
) -> list[str]:
    """Horizontal levels, each labelled at the right, apart from each other and the winner."""
    chosen = [line for line in lines if line.state == "chosen"]
    out, taken = [], [frame.y(line.points[-1][1]) for line in chosen]
    if any(line.particle == 0 for line in chosen):
        base = None
    for value, css, label in ((base, "base", "plain"), (threshold, "bar", "threshold")):
        if value is None:
            continue
        y = frame.y(value)
        out.append(f'<line class="level {css}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" ')
        out.append(f'y1="{y}" y2="{y}"/>')
        spot = y
        if any(abs(spot - other) < 15 for other in taken):
            spot = max(taken) + 16 if y >= min(taken) else min(taken) - 16
        taken.append(spot)
        out.append(f'<text class="level-label {css}" x="{WIDTH - _RIGHT + 10}" y="{spot + 4}">')
        out.append(f"{label} {number(value)}</text>")
    return out


def _winner_label(frame: _Frame, lines: Sequence[Line]) -> list[str]:
    chosen = [line for line in lines if line.state == "chosen"]
    if not chosen:
        return []
    at, reward = max((line.points[-1] for line in chosen), key=lambda point: point[1])
    return [
        f'<text class="winner-label" x="{frame.x(at) + 10}" y="{frame.y(reward) + 4}">'
        f"{number(reward)}</text>"
    ]


def _summary(
    lines: Sequence[Line], name: str, base: float | None, along: str = "denoising steps"
) -> str:
    best = max((ln.points[-1][1] for ln in lines if ln.state == "chosen"), default=None)
    text = f"{name} reward of {len(lines)} particles over the {along}"
    if best is not None:
        text += f"; the chosen one ends at {number(best)}"
    return text + (f", the plain call at {number(base)}" if base is not None else "")


def strip_plot(
    rounds: Sequence[Sequence[Line]],
    *,
    name: str,
    base: float | None = None,
    threshold: float | None = None,
) -> Markup:
    """Final rewards on one axis, a row per round: for methods that judge finished images."""
    values = [line.points[-1][1] for lines in rounds for line in lines]
    if not values:
        return Markup("")
    levels = [("base", "plain", base), ("bar", "threshold", threshold)]
    frame = _Frame([*values, *(v for *_, v in levels if v is not None)])
    left = 70 if len(rounds) > 1 else 24

    def x(value: float) -> float:
        share = (value - frame.low) / (frame.high - frame.low)
        return round(left + share * (WIDTH - left - 24), 1)

    height = 46 + 34 * (len(rounds) - 1)
    out = [
        f'<svg class="plot strip" viewBox="0 0 {WIDTH} {height + 62}" role="img" '
        f'aria-label="{escape(_summary([ln for lines in rounds for ln in lines], name, base))}">'
    ]
    for k, lines in enumerate(rounds):
        y = 46 + 34 * k
        out.append(f'<line class="grid" x1="{left - 8}" x2="{WIDTH - 16}" y1="{y}" y2="{y}"/>')
        if len(rounds) > 1:
            out.append(f'<text class="tick" x="0" y="{y + 4}">round {k + 1}</text>')
        out += [_spot(x(line.points[-1][1]), y, line) for line in lines]
    for value in ticks(frame.low, frame.high, 6):
        label = f"{value:.4g}".replace("-", "−")
        out.append(f'<text class="tick" x="{x(value)}" y="{height + 32}" text-anchor="middle">')
        out.append(f"{label}</text>")
    out += _uprights([(css, label, x(v), v) for css, label, v in levels if v is not None], height)
    out.append(f'<text class="axis" x="{(left + WIDTH) / 2}" y="{height + 58}" ')
    whole = all(line.points[-1][0] == 1 for lines in rounds for line in lines)
    what = "of the finished images" if whole else "where each round ended"
    out.append(f'text-anchor="middle">{escape(name)} reward {what}</text></svg>')
    return Markup("".join(out))


def _spot(x: float, y: float, line: Line) -> str:
    """One particle on a strip; the chosen one with its number."""
    value, name = number(line.points[-1][1]), title(line.particle)
    css = line.state + (" plain" if line.particle == 0 else "")
    dot = (
        f'<g class="particle {css}"><title>particle {name}, {line.state}: {value}</title>'
        f'<circle cx="{x}" cy="{y}" r="{7 if line.state == "chosen" else 5}"/></g>'
    )
    if line.state != "chosen":
        return dot
    at = min(max(x, 30), WIDTH - 26)
    return (
        f'{dot}<text class="winner-label" x="{at}" y="{y - 13}" text-anchor="middle">{value}</text>'
    )


def _uprights(levels: Sequence[tuple[str, str, float, float]], height: float) -> list[str]:
    """Vertical levels across all strips, labelled on top, the labels apart from each other."""
    out, last = [], -1e9
    for css, label, x, value in sorted(levels, key=lambda level: level[2]):
        out.append(f'<line class="level {css}" x1="{x}" x2="{x}" y1="20" y2="{height + 16}"/>')
        at = min(max(x, last + 110, 40), WIDTH - 50)
        last = at
        out.append(f'<text class="level-label {css}" x="{at}" y="12" text-anchor="middle">')
        out.append(f"{label} {number(value)}</text>")
    return out
