"""What the page shows: plain dataclasses, made from a comparison's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from steer.jobs.compare import plot
from steer.jobs.compare.analysis import TIE
from steer.jobs.compare.results import as_array


COLOURS = 8


@dataclass(frozen=True)
class Cell:
    """One reward of one arm: its mean, and how far it lies from the baseline's."""

    mean: str
    interval: str
    sort: float
    best: bool
    difference: str = ""
    verdict: str = ""
    """`up` or `down` where the interval of the difference leaves out nothing, else `even`."""


@dataclass(frozen=True)
class ArmView:
    """A row of the table."""

    name: str
    label: str
    colour: int
    baseline: bool
    how: str
    differs: str
    cells: tuple[Cell, ...]
    cost: Mapping[str, Any]
    diversity: str
    diversity_sort: float


@dataclass(frozen=True)
class Duel:
    """Prompts won, tied and lost against the baseline."""

    label: str
    colour: int
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class RewardView:
    """One reward's panel."""

    name: str
    optimised: bool
    scale: float
    digits: int
    quality: Markup
    forest: Markup
    duels: tuple[Duel, ...]
    matrix: tuple[tuple[str | None, ...], ...]
    """Share of prompts that the row's arm wins against the column's, ties counted as half."""
    heat: tuple[tuple[float, ...], ...]
    categories: tuple[tuple[str, int, tuple[tuple[str, bool], ...]], ...]
    protocol: tuple[tuple[str, tuple[tuple[str, bool], ...]], ...]


@dataclass(frozen=True)
class Shot:
    """An image of one arm for one prompt and seed; `best` marks the rewards that it leads in."""

    src: str
    width: int
    height: int
    small: bool
    scores: tuple[str, ...]
    best: tuple[bool, ...]


@dataclass(frozen=True)
class PromptView:
    """One prompt with every arm's images: `shots[seed][arm]`."""

    index: int
    text: str
    category: str
    spreads: tuple[float, ...]
    shots: tuple[tuple[Shot, ...], ...]


@dataclass(frozen=True)
class PageView:
    """The page."""

    title: str
    when: str
    lede: str
    arms: tuple[ArmView, ...]
    rewards: tuple[RewardView, ...]
    diversity: str
    prompts: tuple[PromptView, ...]
    seeds: tuple[int, ...]
    asked: int
    images: int
    seconds: float
    warnings: tuple[str, ...]
    configuration: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str
    headlines: tuple[tuple[str, str, str, str], ...] = field(default=())
    """Name, from, to and a remark, one per tile."""


def digits_of(found: Mapping[str, Any], reward: str) -> int:
    """Digits with which a reward is shown."""
    return plot.digits_for(points(found, reward))


def points(found: Mapping[str, Any], reward: str) -> list[plot.Point]:
    """The arms by compute and mean reward."""
    scale, base = _scale(found, reward), found["configuration"]["baseline"]
    made = []
    for k, arm in enumerate(found["arms"]):
        mean = found["means"][reward][arm["name"]]
        note = f", {arm['cost']['seconds']:.2g} s an image"
        made.append(
            plot.Point(
                arm["label"],
                arm["cost"]["multiple"],
                *_scaled(mean, scale),
                colour=k % COLOURS,
                baseline=arm["name"] == base,
                note=note,
            )
        )
    return made


def pair_of(found: Mapping[str, Any], reward: str, arm: str) -> Mapping[str, Any] | None:
    """An arm's paired difference to the baseline; None for the baseline itself."""
    base = found["configuration"]["baseline"]
    for pair in found["pairs"]:
        if (pair["arm"], pair["against"], pair["reward"]) == (arm, base, reward):
            return pair
    return None


def reward_view(found: Mapping[str, Any], reward: str) -> RewardView:
    """The panel of one reward."""
    scale, digits = _scale(found, reward), digits_of(found, reward)
    differences, duels = [], []
    for k, arm in enumerate(found["arms"]):
        pair = pair_of(found, reward, arm["name"])
        if pair is None:
            continue
        values = _scaled(pair["difference"], scale)
        differences.append(plot.Point(arm["label"], 1.0, *values, colour=k % COLOURS))
        counts = (pair["wins"], pair["ties"], pair["losses"])
        duels.append(Duel(arm["label"], k % COLOURS, *counts))
    heat = _win_rates(as_array(found, reward))
    return RewardView(
        name=reward,
        optimised=any(r["name"] == reward and r["optimised"] for r in found["rewards"]),
        scale=scale,
        digits=digits,
        quality=plot.quality(points(found, reward), reward),
        forest=plot.forest(differences, digits),
        duels=tuple(duels),
        matrix=tuple(
            tuple(None if a == b else f"{100 * v:.0f}%" for b, v in enumerate(row))
            for a, row in enumerate(heat)
        ),
        heat=tuple(tuple(float(v) for v in row) for row in heat),
        categories=_categories(found, reward, scale, digits),
        protocol=_protocol(found, reward),
    )


def arm_view(found: Mapping[str, Any], index: int) -> ArmView:
    """A row of the table."""
    arm = found["arms"][index]
    names = [reward["name"] for reward in found["rewards"]]
    spread = next(iter(arm["diversity"].values()), None)
    own = next(a for a in found["configuration"]["arms"] if a["name"] == arm["name"])
    how = arm["methods"][0] if len(arm["methods"]) == 1 else f"{len(arm['methods'])} methods"
    parts = [] if how == "BestOfN(n=1)" else [how]
    if arm["denoiser"] != "base":
        parts.append(arm["denoiser"])
    return ArmView(
        name=arm["name"],
        label=arm["label"],
        colour=index % COLOURS,
        baseline=arm["name"] == found["configuration"]["baseline"],
        how=", ".join(parts) or "plain call",
        differs=", ".join(f"{key} {own[key]}" for key in arm["differs"]),
        cells=tuple(_cell(found, name, arm["name"]) for name in names),
        cost=arm["cost"],
        diversity="–" if spread is None else plot.text_of(spread["mean"], 3),
        diversity_sort=-1.0 if spread is None else spread["mean"],
    )


def warnings_of(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the optimised reward rises and a held-out judge falls, each beyond its interval."""
    optimised = [r["name"] for r in found["rewards"] if r["optimised"]]
    judges = [r["name"] for r in found["rewards"] if not r["optimised"]]
    said = []
    for arm in found["arms"]:
        for reward in optimised:
            rise = pair_of(found, reward, arm["name"])
            if rise is None or not (rise["difference"]["low"] or 0) > 0:
                continue
            for judge in judges:
                fall = pair_of(found, judge, arm["name"])
                if fall is not None and (fall["difference"]["high"] or 0) < 0:
                    said.append(
                        f"{arm['label']}: {reward}, which it optimises, rises, and the held-out "
                        f"{judge} falls. That is a gain of the score, not of the images."
                    )
    if not judges:
        said.append(
            "No held-out judge: every number here is the one that was optimised. Name judges in "
            "the configuration before you trust a gain."
        )
    return tuple(said)


def headlines(found: Mapping[str, Any]) -> tuple[tuple[str, str, str, str], ...]:
    """A tile per reward: the baseline's mean, the best arm's, and whose it is."""
    base = found["configuration"]["baseline"]
    made = []
    for reward in found["rewards"]:
        name = reward["name"]
        means = {k: v["mean"] for k, v in found["means"][name].items()}
        best = max(means, key=lambda arm: means[arm])
        digits, scale = digits_of(found, name), reward["scale"]
        label = next(a["label"] for a in found["arms"] if a["name"] == best)
        kind = "optimised" if reward["optimised"] else "held out"
        made.append(
            (
                f"{name}, {kind}",
                plot.text_of(means[base] * scale, digits),
                plot.text_of(means[best] * scale, digits),
                "the baseline is the best arm" if best == base else f"best: {label}",
            )
        )
    return tuple(made)


def _cell(found: Mapping[str, Any], reward: str, arm: str) -> Cell:
    scale, digits = _scale(found, reward), digits_of(found, reward)
    means = found["means"][reward]
    mean, low, high = (means[arm][key] for key in ("mean", "low", "high"))
    pair = pair_of(found, reward, arm)
    cell = {"difference": "", "verdict": ""}
    if pair is not None:
        gap = pair["difference"]
        cell["difference"] = plot.text_of(gap["mean"] * scale, digits, True)
        above, below = (gap["low"] or 0) > 0, (gap["high"] or 0) < 0
        cell["verdict"] = "up" if above else "down" if below else "even"
    interval = ""
    if low is not None:
        interval = f"{plot.text_of(low * scale, digits)} to {plot.text_of(high * scale, digits)}"
    best = mean >= max(m["mean"] for m in means.values())
    return Cell(plot.text_of(mean * scale, digits), interval, mean, best, **cell)


def _win_rates(scores: np.ndarray) -> np.ndarray:
    """Share of prompts that arm a wins against arm b, `(A, A)`, ties as half."""
    means = scores.mean(2)
    gap = means[:, None] - means[None]
    return ((gap > TIE) + 0.5 * (np.abs(gap) <= TIE)).mean(2)


def _categories(
    found: Mapping[str, Any], reward: str, scale: float, digits: int
) -> tuple[tuple[str, int, tuple[tuple[str, bool], ...]], ...]:
    rows = []
    for name, row in found["categories"].items():
        means = row["means"][reward]
        top = max(means.values())
        cells = tuple((plot.text_of(v * scale, digits), v >= top) for v in means.values())
        rows.append((name, row["prompts"], cells))
    return tuple(rows)


def _protocol(
    found: Mapping[str, Any], reward: str
) -> tuple[tuple[str, tuple[tuple[str, bool], ...]], ...]:
    arms = found["protocol"].get(reward)
    if not arms:
        return ()
    styles = list(next(iter(arms.values()))["styles"])
    rows = []
    for style in styles:
        values = [arm["styles"][style] for arm in arms.values()]
        top = max(v["mean"] for v in values)
        cells = tuple((f"{v['mean']:.2f} ± {v['std']:.2f}", v["mean"] >= top) for v in values)
        rows.append((style, cells))
    averages = [arm["average"] for arm in arms.values()]
    rows.append(("average", tuple((f"{v:.2f}", v >= max(averages)) for v in averages)))
    return tuple(rows)


def _scaled(values: Mapping[str, Any], scale: float) -> tuple[float, float | None, float | None]:
    """Mean, low and high in the scale that people see."""
    low, high = values["low"], values["high"]
    if low is None or high is None:
        return values["mean"] * scale, None, None
    return values["mean"] * scale, low * scale, high * scale


def _scale(found: Mapping[str, Any], reward: str) -> float:
    return next(r["scale"] for r in found["rewards"] if r["name"] == reward)


def chosen_prompts(found: Mapping[str, Any], show: int) -> Sequence[int]:
    """Which prompts the page shows: half where the arms disagree most, half evenly spread."""
    count = found["prompts"]["count"]
    if show >= count:
        return range(count)
    ranked = _merged([found["disagreement"][r["name"]] for r in reversed(found["rewards"])])
    first = ranked[: (show + 1) // 2]
    rest = [p for p in range(count) if p not in first]
    spaced = [rest[k * len(rest) // (show - len(first))] for k in range(show - len(first))]
    return sorted([*first, *spaced])


def _merged(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Several rankings in turn: the first of each, the second of each, ..."""
    return list(dict.fromkeys(p for row in zip(*rankings, strict=True) for p in row))
