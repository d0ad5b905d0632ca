"""A reward on the scale of its prompts' own plain images, so that parts and prompts compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from steer.core.types import Reward
from steer.rewards.base import BaseReward, WeightedReward
from steer.rewards.frames import takes_videos
from steer.rewards.inputs import Images, as_prompts
from steer.rewards.parts import check_absolute, check_reward, identity
from steer.rewards.thresholds.scale import Scale, Scales, as_scales


class Scaled(BaseReward):
    """A reward in units of each prompt's own plain images, by a `Scale` that was fitted on some.

    Unlike `combine="standardise"`, which compares the candidates of a call, it gives every image a
    score of its own: it can be held against thresholds, compared over prompts and calls, and has
    gradients (`"z"` only, where the reward has some). Within a prompt nothing changes places.

    Args:
        reward: What scores.
        scale: Its scale.

    Raises:
        ValueError: A reward that compares candidates.
        ThresholdError: The scale is of another reward; when called: of other prompts.
    """

    batch = None
    needs_prompt = True

    def __init__(self, reward: Reward, scale: Scale) -> None:
        check_reward(reward)
        check_absolute(reward, "a scale")
        scale.check(reward)
        self.reward, self.scale = reward, scale
        self.rewards = {reward.name: reward}
        self.name = f"{reward.name} ({scale.unit} by prompt)"
        self.version = "+".join(filter(None, [identity(reward)[1], scale.digest]))
        self.videos = takes_videos(reward)
        z = scale.unit == "z"
        self.differentiable = z and reward.differentiable
        self.range = (-math.inf, math.inf) if z else (0.0, 1.0)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ThresholdError for a prompt of which the scale knows nothing."""
        for prompt in prompts:
            self.scale.at(prompt)

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Scores `(B,)` float32 on the scale."""
        raw = self.reward(images, prompts)  # pyright: ignore[reportArgumentType]
        return self._placed(raw, as_prompts(prompts, len(raw)))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `(b,)` on the scale."""
        return self(images, prompts)

    def _placed(self, raw: Tensor, prompts: Sequence[str]) -> Tensor:
        if self.scale.unit == "percentile":
            values = raw.detach().double().cpu().numpy()
            pairs = zip(values, prompts, strict=True)
            return torch.tensor(
                [float(self.scale.of([value], prompt)[0]) for value, prompt in pairs],
                device=raw.device,
            )
        laws = [self.scale.at(prompt) for prompt in prompts]
        centre = raw.new_tensor([law.centre for law in laws])
        return (raw - centre) / raw.new_tensor([law.sd for law in laws])


def on_scale(reward: Reward, scale: Scales | Scale | str | Path) -> Reward:
    """A reward as `Scaled`; of a weighted sum, every part, whose weights are then in its units.

    Args:
        reward: A single one, or a weighted sum.
        scale: Scales of it or of its parts, or their file.

    Raises:
        ValueError: A reward that compares candidates.
        ThresholdError: A part without a scale, or a file that cannot be read.
    """
    scales = as_scales(scale)
    if not isinstance(reward, WeightedReward):
        check_absolute(reward, "a scale")
        return Scaled(reward, scales.of(reward))
    terms = [
        (Scaled(part, scales.of(part)), reward.weights[name])
        for name, part in reward.rewards.items()
    ]
    return WeightedReward(terms, clip_gradient=reward.clip_gradient)
