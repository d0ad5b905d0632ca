"""Rewards made of others, in two halves: score every part, then combine the scores."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate
from numbers import Real

import torch
from torch import Tensor

from steer.core.types import Reward
from steer.rewards.base import BaseReward, as_scores
from steer.rewards.combine.slope import limited
from steer.rewards.inputs import Images, as_batches, as_prompts
from steer.rewards.sharing import sharing


Parts = dict[str, Tensor]
"""Scores `(B,)` by part."""


class Composite(BaseReward):
    """A reward that first scores images part by part, one by one, then combines the scores.

    `parts` looks at single images, so it may be called a batch at a time; `combine` may compare
    the images of a group (a prompt) with each other, so it must see all of them at once. Called
    as `reward(images, prompts)`, images of equal prompts are one group.

    Attributes:
        rewards: The parts by name.
        relative: Whether a score depends on the other images of the group. Such a score says
            nothing across calls, and cannot be held against a fixed threshold.
    """

    batch = None
    relative: bool = False
    rewards: dict[str, Reward]

    def parts(self, images: Images, prompts: str | Sequence[str]) -> Parts:
        """Every part's own scores `(B,)`, by name; a relative part shows its own parts instead,
        as `"<name>/<part>"`."""
        return score_all(self.rewards, images, prompts)

    @abstractmethod
    def combine(
        self, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None = None
    ) -> Tensor:
        """What `parts` returned as one score per image, `(B,)` float32.

        Args:
            parts: Scores by part, of any number of batches put together.
            groups: One key per image: those with equal keys are candidates of one prompt. `None`
                is one group.
        """

    def own(
        self, name: str, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None
    ) -> Tensor:
        """The score of one part, itself combined first where it is relative."""
        reward = self.rewards[name]
        if not is_relative(reward):
            return parts[name]
        start = f"{name}/"
        inner = {key.removeprefix(start): v for key, v in parts.items() if key.startswith(start)}
        return combined(reward, inner, groups)

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Score images, as `BaseReward` does; images of equal prompts are compared."""
        parts = self.parts(images, prompts)
        count = len(next(iter(parts.values())))
        return self.combine(parts, as_prompts(prompts, count))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self(images, prompts)


class WeightedReward(Composite):
    """`sum(weight * reward)`; a part of weight zero is only reported.

    Each part batches for itself and sees all images; a part that appears twice keeps both entries
    (`name`, `name#2`).

    Args:
        terms: `(reward, weight)` pairs.
        names: How the parts are called in `parts`; default their own names.
        clip_gradient: Largest norm of each part's gradient with respect to each image, before its
            weight: part k then pulls at an image with a norm of at most `|weight| * clip_gradient`,
            so none drowns the others. Scores are not changed. `None` leaves gradients alone.

    Raises:
        ValueError: No parts, a weight that is not a finite number, `clip_gradient` not positive.
    """

    def __init__(
        self,
        terms: Sequence[tuple[Reward, float]],
        names: Sequence[str] | None = None,
        *,
        clip_gradient: float | None = None,
    ) -> None:
        self.rewards, self.weights = weighted_parts(terms, names)
        self.clip_gradient = positive("clip_gradient", clip_gradient)
        self.name = sum_name(self.weights)
        active = [r for name, r in self.rewards.items() if self.weights[name]]
        self.relative = any(map(is_relative, active))
        self.differentiable = all(r.differentiable for r in active)
        self.needs_prompt = any(r.needs_prompt for r in active)
        self.range = self._range()

    def parts(self, images: Images, prompts: str | Sequence[str]) -> Parts:
        """Every part's own, unweighted scores `(B,)`, by name."""
        silent = {name for name, weight in self.weights.items() if not weight}
        return score_all(
            self.rewards, images, prompts, silent=silent, clip_gradient=self.clip_gradient
        )

    def combine(
        self, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None = None
    ) -> Tensor:
        """The weighted sum of what `parts` returned, `(B,)`."""
        total = torch.zeros_like(next(iter(parts.values())))
        for name, weight in self.weights.items():
            if weight:
                total = total + weight * self.own(name, parts, groups)
        return total

    def _range(self) -> tuple[float, float]:
        low = high = 0.0
        for name, weight in self.weights.items():
            if weight:
                ends = sorted(weight * end for end in self.rewards[name].range)
                low, high = low + ends[0], high + ends[1]
        return low, high


def is_relative(reward: Reward) -> bool:
    """Whether scores compare an image with the other candidates of its prompt."""
    return isinstance(reward, Composite) and reward.relative


def check_absolute(reward: Reward, what: str) -> None:
    """Raise ValueError if `reward` is relative, so that `what` cannot be asked of it."""
    if is_relative(reward):
        raise ValueError(
            f"{what} cannot be held against reward {reward.name!r}, whose scores only rank the "
            "candidates of a prompt: use an absolute reward (combine='sum', or a single one), or "
            "ask for minima of its parts with minimum={'aesthetic': 5.0}"
        )


def parts_of(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Parts:
    """The scores of a reward's parts, by name; a reward without parts is its own only part."""
    if isinstance(reward, Composite):
        return reward.parts(images, prompts)
    return {reward.name: as_scores(reward.name, reward(images, prompts), images)}


def combined(
    reward: Reward, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None
) -> Tensor:
    """What `parts_of` returned (of one batch or of several, put together) as scores `(B,)`."""
    if isinstance(reward, Composite):
        return reward.combine(parts, groups)
    return parts[reward.name]


@sharing()
def score_all(
    rewards: Mapping[str, Reward],
    images: Images,
    prompts: str | Sequence[str],
    *,
    silent: set[str] | frozenset[str] = frozenset(),
    clip_gradient: float | None = None,
) -> Parts:
    """Scores of all images under every reward; those in `silent` without gradient."""
    videos = isinstance(images, Tensor) and images.ndim == 5  # parts check them: `PerFrame`
    batches = [images] if isinstance(images, Tensor) and videos else as_batches(images)
    texts = as_prompts(prompts, sum(map(len, batches)))
    ends = accumulate(map(len, batches), initial=0)
    pieces = [(b, texts[start : start + len(b)]) for b, start in zip(batches, ends, strict=False)]
    found: Parts = {}
    for name, reward in rewards.items():
        with torch.no_grad() if name in silent else nullcontext():
            scored = [_score_one(name, reward, b, t, clip_gradient) for b, t in pieces]
        found |= {key: torch.cat([piece[key] for piece in scored]) for key in scored[0]}
    return found


def _score_one(
    name: str, reward: Reward, images: Tensor, prompts: list[str], clip_gradient: float | None
) -> Parts:
    if is_relative(reward):
        inner = parts_of(reward, images, prompts)
        return {f"{name}/{key}": value for key, value in inner.items()}
    if clip_gradient is not None and reward.differentiable:
        return {name: limited(name, reward, images, prompts, clip_gradient)}
    return {name: as_scores(name, reward(images, prompts), images)}


def terms(reward: Reward, weight: float = 1.0) -> list[tuple[Reward, float]]:
    """A reward as `(reward, weight)` pairs; a plain weighted sum is opened up."""
    if isinstance(reward, WeightedReward) and reward.clip_gradient is None:
        factor = _weight(reward.name, weight)
        return [(r, factor * reward.weights[name]) for name, r in reward.rewards.items()]
    if not isinstance(reward, Reward):
        raise ValueError(f"{reward!r} is not a reward: wrap it with steer.reward(...)")
    return [(reward, weight)]


def weighted_parts(
    terms: Sequence[tuple[Reward, float]], names: Sequence[str] | None
) -> tuple[dict[str, Reward], dict[str, float]]:
    """Parts and their weights by unique name; ValueError where there are none or they are bad."""
    if not terms:
        raise ValueError("a weighted reward needs a part, for example {'hpsv2': 1.0}")
    rewards = _named([reward for reward, _ in terms], names)
    weights = zip(rewards, (weight for _, weight in terms), strict=True)
    return rewards, {name: _weight(name, weight) for name, weight in weights}


def sum_name(weights: Mapping[str, float]) -> str:
    """How a weighted sum is called: `"0.7*hpsv2 + 0.3*aesthetic"`."""
    return " + ".join(f"{weight:g}*{name}" for name, weight in weights.items())


def positive(name: str, value: float | None) -> float | None:
    """`value` as a float, or None; ValueError unless it is a finite number above 0."""
    if value is None:
        return None
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value!r}: must be a finite number above 0, or None")
    return float(value)


def _weight(name: str, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise ValueError(f"weight of {name!r} is {weight!r}: it must be a finite number")
    return float(weight)


def _named(rewards: Sequence[Reward], names: Sequence[str] | None) -> dict[str, Reward]:
    titles = unique(names or [reward.name for reward in rewards])
    return dict(zip(titles, rewards, strict=True))


def unique(names: Sequence[str]) -> list[str]:
    """Names of which later equals are numbered: `name`, `name#2`."""
    found: list[str] = []
    for name in names:
        title, count = name, 1
        while title in found:
            count += 1
            title = f"{name}#{count}"
        found.append(title)
    return found
