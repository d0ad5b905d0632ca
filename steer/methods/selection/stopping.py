"""Which prompts of a call draw further candidates, given what they have seen so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steer.rewards.thresholds.outlook import Outlook
from steer.rewards.thresholds.prior import Prior, pooled_sd


Rewards = Mapping[int, Sequence[float]]
"""By prompt, in the order of the particles."""

_TOGETHER = 4  # prompts of a call from which on they are a prior for each other


@dataclass(eq=False, kw_only=True)
class Stopping:
    """The rule of `Adaptive` during one call: numbers in, numbers out.

    Attributes:
        n: Candidates per returned image, of every prompt or on average.
        most: Candidates per returned image that one prompt may draw.
        price, unit: What one more candidate must add.
        batch: Candidates per returned image that are drawn together.
        images: Returned per prompt.
        prior: Of the rewards; where it is `None`, `learn` may find one.
    """

    n: int
    most: int
    price: float
    unit: Literal["sd", "reward"] = "sd"
    batch: int = 1
    images: int = 1
    prior: Prior | None = None

    def learn(self, rewards: Rewards) -> None:
        """Take the first candidates of all prompts for a prior, unless there is one."""
        groups = {str(prompt): own for prompt, own in rewards.items() if len(own) > 1}
        alike = not pooled_sd([np.asarray(own) for own in groups.values()]) > 0
        if self.prior is None and len(groups) >= _TOGETHER and not alike:
            self.prior = Prior.fit(groups)

    def more(self, rewards: Rewards, drawn: Mapping[int, int]) -> dict[int, int]:
        """How many candidates every prompt draws next; those that stop are left out.

        Args:
            rewards: Of the candidates that may be returned.
            drawn: How many candidates every prompt has drawn.
        """
        price = self.reward_price(rewards)
        gains = {prompt: self.gain(own) for prompt, own in rewards.items()}
        left = self.n * self.images * len(drawn) - sum(drawn.values())
        able = [p for p in drawn if drawn[p] < self.most * self.images and gains[p] > price]
        if self.most > self.n:
            able = _dearest(able, gains)
        counts: dict[int, int] = {}
        for prompt in able:
            room = min(self.most * self.images - drawn[prompt], left)
            counts[prompt] = min(self.batch * self.images, room)
            left -= counts[prompt]
        return {prompt: counts[prompt] for prompt in drawn if counts.get(prompt)}

    def outlook(self, rewards: Sequence[float]) -> Outlook:
        """What is believed of a prompt that showed these rewards."""
        start = Outlook() if self.prior is None else self.prior.outlook
        return start.after(rewards)

    def gain(self, rewards: Sequence[float]) -> float:
        """What the next candidate is expected to add to the sum of the returned rewards."""
        if len(rewards) < self.images:
            return math.inf
        return self.outlook(rewards).gain(sorted(rewards)[-self.images])

    def reward_price(self, rewards: Rewards) -> float:
        """The price in the reward's own units; 0 while nothing is known of their spread."""
        if self.unit == "reward":
            return self.price
        known = pooled_sd([np.asarray(own, dtype=np.float64) for own in rewards.values()])
        sd = known if self.prior is None else self.prior.unit
        return self.price * sd if sd == sd else 0.0


def _dearest(prompts: Sequence[int], gains: Mapping[int, float]) -> list[int]:
    """The prompts to serve first where all share, largest gain first.

    Those whose next candidate adds half of the largest gain or more: gains fall as candidates are
    drawn, so all come down together.
    """
    ranked = sorted(prompts, key=lambda prompt: -gains[prompt])
    return [prompt for prompt in ranked if gains[prompt] >= gains[ranked[0]] / 2]
