"""A reward averaged over small changes that no eye would mind: one that is harder to fool."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from steer.core.checks import whole
from steer.core.seeds import row_seed
from steer.core.types import Reward
from steer.rewards.base import Composite
from steer.rewards.frames import as_videos, takes_videos
from steer.rewards.inputs import Images, as_batches, as_prompts
from steer.rewards.parts import (
    Parts,
    check_pointwise,
    check_reward,
    combine_parts,
    is_relative,
    parts_of,
)
from steer.rewards.sharing import once
from steer.rewards.weights import is_finite


SEED = 20_261
TOGETHER = 32
"""Pictures that are scored in one call, at least where there are as many."""


class Augmented(Composite):
    """The mean of a reward over `n` pictures: the given one, and small changes of it.

    Each change shifts the picture by whole pixels (the edge is repeated), scales its brightness and
    adds Gaussian noise, and stays in [0, 1]. A score that a change takes away was not earned by
    what the picture shows. The changes come from a constant seed: they are the same for every
    picture of a size and every frame of a video, so that scores can be compared, and those of
    `n=8` are the first of `n=16`. A call costs `n` scores per picture.

    Of a weighted sum every part is averaged; of a reward that ranks candidates the parts are
    averaged first, and then ranked.

    Args:
        reward: What scores one picture.
        n: Pictures to average, the given one among them; at least 1.
        shift: Largest shift in each direction, as a share of the side; in [0, 0.5].
        brightness: Largest relative change of brightness, in [0, 0.99].
        noise: Standard deviation of the noise, in pixel values of [0, 1]; in [0, 1].

    Raises:
        ValueError: Not a reward, or a number out of its range.
    """

    def __init__(
        self,
        reward: Reward,
        n: int = 8,
        *,
        shift: float = 0.05,
        brightness: float = 0.1,
        noise: float = 0.02,
    ) -> None:
        check_reward(reward)
        check_pointwise(reward, "augmentations")
        whole("n", n, "Augmented(reward, n=8)")
        self.reward, self.n = reward, n
        self.shift = _between("shift", shift, 0.5)
        self.brightness = _between("brightness", brightness, 0.99)
        self.noise = _between("noise", noise, 1.0)
        self.name = f"{reward.name} ({n} augmentations, {self._strengths})"
        self.rewards = {reward.name: reward}
        self.relative = is_relative(reward)
        self.differentiable = reward.differentiable
        self.range = reward.range
        self.needs_prompt = reward.needs_prompt

    @property
    def _strengths(self) -> str:
        return f"shift {self.shift:g}, brightness {self.brightness:g}, noise {self.noise:g}"

    def __repr__(self) -> str:
        numbers = f"shift={self.shift}, brightness={self.brightness}, noise={self.noise}"
        return f"Augmented({self.reward.name!r}, n={self.n}, {numbers})"

    def pictures(self, images: Tensor, number: int) -> Tensor:
        """Change `number` of `images` `(..., 3, H, W)`, floats in [0, 1]; 0 is no change."""
        if number == 0:
            return images
        generator = torch.Generator().manual_seed(row_seed(SEED, number))
        height, width = images.shape[-2:]
        down, right, light = (
            2 * torch.rand(3, generator=generator, dtype=torch.float64) - 1
        ).tolist()
        rows = _moved(height, down * self.shift, images.device)
        columns = _moved(width, right * self.shift, images.device)
        moved = images[..., rows[:, None], columns] * (1 + self.brightness * light)
        noise = torch.randn(3, height, width, generator=generator).to(images)
        return (moved + self.noise * noise).clamp(0, 1)

    def parts(self, images: Images, prompts: str | Sequence[str]) -> Parts:
        """The means over the changes, `(B,)` each: the reward's own, and its parts' if it has some.

        Args:
            images: As the reward takes them.
            prompts: One per image or video, or one string for all.

        Raises:
            ValueError: Images, videos or prompts that do not fit.
        """
        batches = [as_videos(images)] if takes_videos(self.reward) else as_batches(images)
        texts, found = as_prompts(prompts, sum(map(len, batches))), []
        for batch in batches:
            own, texts = texts[: len(batch)], texts[len(batch) :]
            found.append(self._means(batch, own))
        return {key: torch.cat([part[key] for part in found]) for key in found[0]}

    def combine(
        self, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None = None
    ) -> Tensor:
        """What `parts` returned as one score per image, `(B,)`."""
        if self.relative:
            return combine_parts(self.reward, parts, groups)
        return parts[self.reward.name]

    def _means(self, images: Tensor, texts: list[str]) -> Parts:
        """Means `(B,)` of one batch, as many changes in one call as make `TOGETHER` pictures."""
        size = max(1, TOGETHER // len(images))
        pieces = [
            self._scores(images, texts, range(start, min(start + size, self.n)))
            for start in range(0, self.n, size)
        ]
        return {key: torch.cat([piece[key] for piece in pieces]).mean(0) for key in pieces[0]}

    def _scores(self, images: Tensor, texts: list[str], numbers: range) -> Parts:
        """Scores `(changes, B)` of some of the changes."""
        key = ("augmented", self.shift, self.brightness, self.noise, numbers)
        changed = once(images, key, lambda: torch.cat([self.pictures(images, k) for k in numbers]))
        found = parts_of(self.reward, changed, texts * len(numbers))
        if not self.relative:
            found[self.reward.name] = combine_parts(self.reward, found, None)
        return {name: scores.unflatten(0, (len(numbers), -1)) for name, scores in found.items()}


def _moved(length: int, share: float, device: torch.device) -> Tensor:
    """Where each of `length` pixels comes from after a shift by a share of them."""
    return (torch.arange(length, device=device) - round(share * length)).clamp(0, length - 1)


def _between(name: str, value: object, most: float) -> float:
    if not is_finite(value) or not 0 <= value <= most:
        raise ValueError(f"{name}={value!r}: must be a number from 0 to {most:g}")
    return float(value)
