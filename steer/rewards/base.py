"""What steer's own rewards share: inputs at the edge, micro-batches, and arithmetic."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steer.core.errors import RewardError
from steer.core.types import Reward
from steer.rewards.inputs import Images, as_batches, as_prompts
from steer.rewards.sharing import once


if TYPE_CHECKING:
    from steer.rewards.combine.minimum import AtLeast
    from steer.rewards.combine.weighted import WeightedReward

logger = logging.getLogger("steer.rewards")


class BaseReward(ABC):
    """A reward that implements `score` for one micro-batch and inherits the rest.

    Attributes:
        name: Short name, as it appears in reports.
        differentiable: Gradients reach `images`.
        range: Smallest and largest possible score.
        needs_prompt: Whether the score depends on the prompt.
        batch: Most images scored at once; `None` is all of them. Halved where the device runs out
            of memory.
        device: Where the reward computes; `None` is wherever the images are.
        version: Tells its weights from others under the same name; empty where it has none.
    """

    name: str = ""
    differentiable: bool = False
    range: tuple[float, float] = (float("-inf"), float("inf"))
    needs_prompt: bool = True
    batch: int | None = 32
    device: torch.device | None = None
    version: str = ""

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Checked float images `(b, 3, H, W)` on `device` and b prompts to `(b,)` scores."""

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Score images; higher is better.

        Args:
            images: Float `(B, 3, H, W)` in [0, 1]. For convenience also uint8 tensors,
                channels-last numpy arrays, PIL images and lists of them, of any sizes.
            prompts: One per image, or one string for all.

        Returns:
            `(B,)` float32, on the images' device; differentiable if the reward is.

        Raises:
            ValueError: Images or prompts that do not fit (the message says how to fix them).
            RewardError: The score has the wrong shape.
        """
        batches = as_batches(images)
        texts = as_prompts(prompts, sum(map(len, batches)))
        scores, start = [], 0
        for batch in batches:
            size = self.batch or len(batch)
            for chunk in once(batch, ("split", size), lambda b=batch, n=size: b.split(n)):
                part = texts[start : start + len(chunk)]
                moved = chunk.to(self.device or chunk.device)
                scores.append(as_scores(self.name, self._fitting(moved, part), chunk))
                start += len(chunk)
        return torch.cat(scores)

    def _fitting(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`score`, in halves where memory is short; `batch` remembers what fits."""
        try:
            return self.score(images, prompts)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        half = (len(images) + 1) // 2
        self.batch = min(half, self.batch or half)
        logger.warning("%s: out of memory, now scoring %d images at once", self.name, self.batch)
        if images.is_cuda:
            torch.cuda.empty_cache()
        parts = zip(images.split(half), (prompts[:half], prompts[half:]), strict=True)
        return torch.cat([self._fitting(part, texts) for part, texts in parts])

    def at_least(self, minimum: Mapping[Any, float] | None = None, **options: Any) -> AtLeast:
        """This reward under conditions: `reward.at_least({"aesthetic": 5.0})`.

        Args:
            minimum: Smallest acceptable score by reward.
            **options: `penalty`, `floor`, `device` and `dtype` of `AtLeast`; every other name is a
                reward and its minimum, `reward.at_least(aesthetic=5.0)`.

        Raises:
            ValueError: As in `AtLeast`.
        """
        from steer.rewards.combine.minimum import AtLeast

        taken = ("penalty", "floor", "device", "dtype")
        own = {name: options.pop(name) for name in taken if name in options}
        return AtLeast(self, {**(minimum or {}), **options}, **own)

    def __mul__(self, weight: float) -> WeightedReward:
        from steer.rewards.combine.weighted import WeightedReward, terms

        return WeightedReward(terms(self, weight))

    __rmul__ = __mul__

    def __neg__(self) -> WeightedReward:
        return self * -1.0

    def __add__(self, other: Reward) -> WeightedReward:
        from steer.rewards.combine.weighted import WeightedReward, terms

        return WeightedReward([*terms(self), *terms(other)])

    def __sub__(self, other: Reward) -> WeightedReward:
        from steer.rewards.combine.weighted import WeightedReward, terms

        return WeightedReward([*terms(self), *[(r, -w) for r, w in terms(other)]])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def checked_batch(batch: int | None) -> int | None:
    """`batch` itself; ValueError unless it is at least 1, or None."""
    if batch is not None and batch < 1:
        raise ValueError(f"batch={batch}: score at least one image at a time, or None for all")
    return batch


def as_scores(name: str, scores: Tensor, images: Tensor) -> Tensor:
    """What a reward returned for `images`, as `(B,)` float32 on their device.

    Raises:
        RewardError: It is not a tensor of one score per image.
    """
    found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(scores, Tensor) or found != (len(images),):
        raise RewardError(
            f"reward {name!r} returned {found} for {len(images)} images: it must return a tensor "
            f"with one score per image, ({len(images)},)"
        )
    return scores.to(images.device, torch.float32)
