"""Weighted sums of rewards, which also show their parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from numbers import Real

import torch
from torch import Tensor

from steer.rewards.base import BaseReward, as_scores
from steer.rewards.inputs import Images, as_batches, as_prompts
from steer.types import Reward


class WeightedReward(BaseReward):
    """`sum(weight * reward)`; a part of weight zero is only reported.

    Each part batches for itself and sees all images; a part that appears twice keeps both entries
    (`name`, `name#2`).

    Args:
        terms: `(reward, weight)` pairs.
        names: How the parts are called in `parts`; default their own names.

    Raises:
        ValueError: No parts, or a weight that is not a finite number.
    """

    batch = None

    def __init__(
        self, terms: Sequence[tuple[Reward, float]], names: Sequence[str] | None = None
    ) -> None:
        if not terms:
            raise ValueError("a weighted reward needs a part, for example {'hpsv2': 1.0}")
        self.rewards = _named([reward for reward, _ in terms], names)
        weights = dict(zip(self.rewards, (weight for _, weight in terms), strict=True))
        self.weights = {name: _weight(name, weight) for name, weight in weights.items()}
        self.name = " + ".join(f"{w:g}*{name}" for name, w in self.weights.items())
        active = [r for name, r in self.rewards.items() if self.weights[name]]
        self.differentiable = all(r.differentiable for r in active)
        self.needs_prompt = any(r.needs_prompt for r in active)
        self.range = self._range()

    def parts(self, images: Images, prompts: str | Sequence[str]) -> dict[str, Tensor]:
        """Every part's own, unweighted scores `(B,)`, by name."""
        batches = as_batches(images)
        texts = as_prompts(prompts, sum(map(len, batches)))
        ends = list(accumulate(map(len, batches), initial=0))
        pieces = [
            (b, texts[start : start + len(b)]) for b, start in zip(batches, ends, strict=False)
        ]
        return {
            name: torch.cat([as_scores(name, reward(b, t), b) for b, t in pieces])
            for name, reward in self.rewards.items()
        }

    def combine(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum of what `parts` returned, `(B,)`."""
        first = next(iter(parts.values()))
        total = torch.zeros_like(first)
        for name, weight in self.weights.items():
            if weight:
                total = total + weight * parts[name]
        return total

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.combine(self.parts(images, prompts))

    def _range(self) -> tuple[float, float]:
        low = high = 0.0
        for name, weight in self.weights.items():
            if weight:
                ends = sorted(weight * end for end in self.rewards[name].range)
                low, high = low + ends[0], high + ends[1]
        return low, high


def terms(reward: Reward, weight: float = 1.0) -> list[tuple[Reward, float]]:
    """A reward as `(reward, weight)` pairs; a weighted sum is opened up."""
    if isinstance(reward, WeightedReward):
        return [(r, weight * reward.weights[name]) for name, r in reward.rewards.items()]
    if not isinstance(reward, Reward):
        raise ValueError(f"{reward!r} is not a reward: wrap it with steer.reward(...)")
    return [(reward, weight)]


def _weight(name: str, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise ValueError(f"weight of {name!r} is {weight!r}: it must be a finite number")
    return float(weight)


def _named(rewards: Sequence[Reward], names: Sequence[str] | None) -> dict[str, Reward]:
    named: dict[str, Reward] = {}
    for reward, name in zip(rewards, names or [r.name for r in rewards], strict=True):
        unique, count = name, 1
        while unique in named:
            count += 1
            unique = f"{name}#{count}"
        named[unique] = reward
    return named
