"""The page's panels: a row per arm, and all about one reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from steer.jobs.compare import plot
from steer.jobs.compare.analysis import TIE
from steer.jobs.compare.findings import (
    COLOURS,
    digits_of,
    pair_of,
    points,
    scale_in,
    scale_interval,
)
from steer.jobs.compare.results import as_array
from steer.jobs.compare.views import ArmView, Cell, Duel, RewardView


def reward_view(found: Mapping[str, Any], reward: str) -> RewardView:
    """The panel of one reward."""
    scale, digits = scale_in(found, reward), digits_of(found, reward)
    differences, duels = [], []
    for k, arm in enumerate(found["arms"]):
        pair = pair_of(found, reward, arm["name"])
        if pair is None:
            continue
        values = scale_interval(pair["difference"], scale)
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


def _cell(found: Mapping[str, Any], reward: str, arm: str) -> Cell:
    scale, digits = scale_in(found, reward), digits_of(found, reward)
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
