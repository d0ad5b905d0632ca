"""Minima that a candidate must keep: "the best by hpsv2 whose aesthetic score is at least 5"."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from steer.core.errors import RewardError
from steer.core.types import Reward
from steer.rewards.base import Composite
from steer.rewards.inputs import Images
from steer.rewards.parts import (
    Composed,
    Parts,
    check_reward,
    combine_parts,
    is_relative,
    score_all,
)
from steer.rewards.sharing import sharing
from steer.rewards.weights import as_positive, is_finite, unique


FLOOR = -1e4
"""Where failing candidates start when the reward has no declared lower end."""


class AtLeast(Composite):
    """A reward under conditions: no other reward may fall below its minimum.

    Without `penalty` the minima come first. Let `h` be the sum of shortfalls
    `max(0, minimum - score)` over the minima. Candidates with `h = 0` keep their reward; the others
    get `floor - w (1 + h / (1 + h))` with `w = max(1, |floor|)`: finite, below every candidate that
    keeps its minima, and the lower the further they fall short, whatever their reward.

    With `penalty` the conditions are soft: the reward minus `penalty * h`, a hinge that gradients
    can follow. Shortfalls are in the units of each minimum's own reward.

    Args:
        reward: What is optimised.
        minimum: Smallest acceptable score by reward, or by the name of one: a part of `reward`
            (its score is used as it is) or one of `others`.
        others: Rewards by the names that `minimum` uses.
        penalty: Weight of the hinge, above 0; `None` is the hard form.
        floor: Below which failing candidates go; default the lower end of the reward's range, or
            -1e4 where that is unbounded. Only for the hard form.

    Raises:
        ValueError: Not a reward, no minimum, or one that is not a finite number, names no part, or
            belongs to a relative reward.
    """

    def __init__(
        self,
        reward: Reward,
        minimum: Mapping[Reward | str, float],
        *,
        others: Mapping[str, Reward] | None = None,
        penalty: float | None = None,
        floor: float | None = None,
    ) -> None:
        if not isinstance(minimum, Mapping) or not minimum:
            raise ValueError(f"minimum={minimum!r}: give scores by reward, such as {_EXAMPLE}")
        check_reward(reward)
        self.reward = reward
        self.penalty = as_positive("penalty", penalty)
        self.extra: dict[str, Reward] = {}
        self.minimum: dict[str, float] = {}
        for key, value in minimum.items():
            self.minimum[self._add(key, others or {})] = _as_finite("minimum", value)
        self.rewards = parts_by_name(reward) | self.extra
        self.floor = self._floor(floor)
        self.name = f"{reward.name} ({', '.join(map(self._condition, self.minimum))})"
        self.relative = is_relative(reward)
        judged = [reward, *(self.rewards[name] for name in self.minimum)]
        self.differentiable = self.penalty is not None and all(r.differentiable for r in judged)
        self.needs_prompt = any(r.needs_prompt for r in judged)
        lowest = self.floor - 2 * max(1.0, abs(self.floor)) if self.penalty is None else -math.inf
        self.range = (lowest, reward.range[1])

    @sharing()
    def parts(self, images: Images, prompts: str | Sequence[str]) -> Parts:
        """The reward's own parts and those that have a minimum, `(B,)` each, by name."""
        if isinstance(self.reward, Composed):
            found = self.reward.parts(images, prompts)
        else:
            found = score_all({self.reward.name: self.reward}, images, prompts)
        limit = getattr(self.reward, "clip_gradient", None)
        return found | score_all(self.extra, images, prompts, clip_gradient=limit)

    def combine(
        self, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None = None
    ) -> Tensor:
        """The reward where the minima are kept, less elsewhere; `(B,)`."""
        value = combine_parts(self.reward, parts, groups)
        short = self.shortfall(parts)
        if self.penalty is not None:
            return value - self.penalty * short
        self._check_floor(value[short == 0])
        width = max(1.0, abs(self.floor))
        return torch.where(short == 0, value, self.floor - width * (1 + short / (1 + short)))

    def shortfall(self, parts: Mapping[str, Tensor]) -> Tensor:
        """How far each image falls short of the minima, in all, `(B,)`; 0 where it does not."""
        example = next(iter(parts.values()))
        total = example.new_zeros(len(example))
        for name, minimum in self.minimum.items():
            total = total + (minimum - parts[name]).clamp(min=0)
        return total

    def _add(self, key: Reward | str, others: Mapping[str, Reward]) -> str:
        """The part that a minimum is about, by name; scored in addition if nobody scores it."""
        taken = parts_by_name(self.reward) | self.extra
        found = _find(key, taken, others) if isinstance(key, str) else key
        check_reward(found)
        if is_relative(found):
            raise ValueError(
                f"minimum of {found.name!r}: its scores only rank the candidates of a prompt; "
                f"give minima of absolute rewards, such as {_EXAMPLE}"
            )
        scored = parts_by_name(self.reward, with_gradient=bool(self.penalty)) | self.extra
        for name, reward in scored.items():
            if reward is found:
                return name
        title = unique([*taken, key if isinstance(key, str) else found.name])[-1]
        self.extra[title] = found
        return title

    def _floor(self, floor: float | None) -> float:
        if floor is not None:
            return _as_finite("floor", floor)
        low = self.reward.range[0]
        return low if math.isfinite(low) else FLOOR

    def _check_floor(self, values: Tensor) -> None:
        if bool((values < self.floor).any()):
            raise RewardError(
                f"reward {self.reward.name!r} scored {float(values.min()):.6g}, below "
                f"floor={self.floor:g} where candidates go that miss a minimum: pass a lower floor="
            )

    def _condition(self, name: str) -> str:
        return f"{name} >= {self.minimum[name]:g}"


_EXAMPLE = "{'aesthetic': 5.0}"


def parts_by_name(reward: Reward, with_gradient: bool = False) -> dict[str, Reward]:
    """A reward's parts by name, itself where it has none.

    Args:
        reward: Any.
        with_gradient: Leave out parts of weight 0, which are scored without gradients.
    """
    if not isinstance(reward, Composed):
        return {reward.name: reward}
    weights = getattr(reward, "weights", {}) if with_gradient else {}
    return {name: part for name, part in reward.rewards.items() if weights.get(name, 1.0)}


def _find(name: str, taken: Mapping[str, Reward], others: Mapping[str, Reward]) -> Reward:
    if name not in taken and name not in others:
        raise ValueError(
            f"minimum of {name!r}: no such part, there are {', '.join(taken)}; write "
            f"steer.reward(..., minimum={{{name!r}: ...}}), which looks up names"
        )
    return taken[name] if name in taken else others[name]


def _as_finite(name: str, value: object) -> float:
    if not is_finite(value):
        raise ValueError(f"{name}={value!r}: must be a finite number, as in minimum={_EXAMPLE}")
    return float(value)
