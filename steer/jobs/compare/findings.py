"""What a comparison's results say: `found` is the contents of `results.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steer.jobs.compare import plot


COLOURS = 8


def digits_of(found: Mapping[str, Any], reward: str) -> int:
    """Digits with which a reward is shown."""
    return plot.digits_for(points(found, reward))


def points(found: Mapping[str, Any], reward: str) -> list[plot.Point]:
    """The arms by compute and mean reward."""
    scale, base = scale_in(found, reward), found["configuration"]["baseline"]
    made = []
    for k, arm in enumerate(found["arms"]):
        mean = found["means"][reward][arm["name"]]
        note = f", {arm['cost']['seconds']:.2g} s an image"
        made.append(
            plot.Point(
                arm["label"],
                arm["cost"]["multiple"],
                *scale_interval(mean, scale),
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


def chosen_prompts(found: Mapping[str, Any], show: int) -> Sequence[int]:
    """Which prompts the page shows: half where the arms disagree most, half evenly spread."""
    count = found["prompts"]["count"]
    if show >= count:
        return range(count)
    ranked = _interleave([found["disagreement"][r["name"]] for r in reversed(found["rewards"])])
    first = ranked[: (show + 1) // 2]
    rest = [p for p in range(count) if p not in first]
    spaced = [rest[k * len(rest) // (show - len(first))] for k in range(show - len(first))]
    return sorted([*first, *spaced])


def _interleave(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Several rankings in turn: the first of each, the second of each, ..."""
    return list(dict.fromkeys(p for row in zip(*rankings, strict=True) for p in row))


def scale_interval(
    values: Mapping[str, Any], scale: float
) -> tuple[float, float | None, float | None]:
    """Mean, low and high in the scale that people see."""
    low, high = values["low"], values["high"]
    if low is None or high is None:
        return values["mean"] * scale, None, None
    return values["mean"] * scale, low * scale, high * scale


def scale_in(found: Mapping[str, Any], reward: str) -> float:
    """What a reward is multiplied with for people."""
    return next(r["scale"] for r in found["rewards"] if r["name"] == reward)
