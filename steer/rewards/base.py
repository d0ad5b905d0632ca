"""What steer's own rewards share: inputs at the edge, micro-batches, and arithmetic."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from steer.core.types import Reward
from steer.rewards.inputs import Images, as_batches, as_prompts
from steer.rewards.parts import (
    Parts,
    as_scores,
    check_reward,
    combine_parts,
    is_relative,
    score_all,
)
from steer.rewards.sharing import once
from steer.rewards.text import write_mixture
from steer.rewards.weights import Term, as_positive, as_weight, name_terms


logger = logging.getLogger("steer.rewards")


class BaseReward(ABC):
    """A reward that implements `score` for one micro-batch and inherits the rest.

    Rewards can be added, subtracted and multiplied by numbers: `0.7 * hpsv2 + 0.3 * aesthetic` is a
    `WeightedReward`.

    Attributes:
        name: Short name, as it appears in reports.
        differentiable: Gradients reach `images`.
        range: Smallest and largest possible score.
        needs_prompt: Whether the score depends on the prompt.
        batch: Most images scored at once; `None` is all of them. Halved where the device runs out
            of memory.
        device: Where the reward computes; `None` is wherever the images are.
        version: Tells its weights from others under the same name; empty where it has none.
        least_frames: Fewest frames of a video that it scores; above 1 it scores no images.
        groupwise: Whether it must be called with all candidates of a prompt at once; see
            `steer.rewards.Groupwise`.
        family: Backbone and training data, as `"clip-h/human"`; see `steer.rewards.families`. Empty
            where nothing is known; a composition has those of its parts.
    """

    name: str = ""
    differentiable: bool = False
    range: tuple[float, float] = (float("-inf"), float("inf"))
    needs_prompt: bool = True
    batch: int | None = 32
    device: torch.device | None = None
    version: str = ""
    least_frames: int = 1
    groupwise: bool = False
    family: str = ""

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
        batches = self.batches(images)
        texts = as_prompts(prompts, sum(map(len, batches)))
        scores, start = [], 0
        for batch in batches:
            size = self.batch or len(batch)
            for chunk in once(batch, ("split", size), lambda b=batch, n=size: b.split(n)):
                part = texts[start : start + len(chunk)]
                moved = chunk.to(self.device or chunk.device)
                scores.append(as_scores(self.name, self._score_in_memory(moved, part), chunk))
                start += len(chunk)
        return torch.cat(scores)

    def batches(self, images: Images) -> list[Tensor]:
        """What a call is given as checked float batches `(b, 3, H, W)`; see `as_batches`."""
        return as_batches(images)

    def _score_in_memory(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`score`, in halves where memory is short; `batch` remembers what fits."""
        try:
            return self.score(images, prompts)
        except torch.OutOfMemoryError:
            if len(images) == 1 or self.groupwise:
                raise
        half = (len(images) + 1) // 2
        self.batch = min(half, self.batch or half)
        logger.warning("%s: out of memory, now scoring %d images at once", self.name, self.batch)
        if images.is_cuda:
            torch.cuda.empty_cache()
        parts = zip(images.split(half), (prompts[:half], prompts[half:]), strict=True)
        return torch.cat([self._score_in_memory(part, texts) for part, texts in parts])

    def __mul__(self, weight: float) -> WeightedReward:
        return WeightedReward(terms(self, weight))

    __rmul__ = __mul__

    def __neg__(self) -> WeightedReward:
        return self * -1.0

    def __add__(self, other: Reward) -> WeightedReward:
        return WeightedReward([*terms(self), *terms(other)])

    def __sub__(self, other: Reward) -> WeightedReward:
        return WeightedReward([*terms(self), *[(r, -w) for r, w in terms(other)]])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


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

    def score_part(
        self, name: str, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None
    ) -> Tensor:
        """The score `(B,)` of one part, out of what `parts` returned; a relative part's own parts
        are combined first."""
        reward = self.rewards[name]
        if not is_relative(reward):
            return parts[name]
        start = f"{name}/"
        inner = {key.removeprefix(start): v for key, v in parts.items() if key.startswith(start)}
        return combine_parts(reward, inner, groups)

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Score images, as `BaseReward` does; images of equal prompts are compared."""
        parts = self.parts(images, prompts)
        count = len(next(iter(parts.values())))
        return self.combine(parts, as_prompts(prompts, count))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores `(B,)` of images, as a call returns them."""
        return self(images, prompts)


class WeightedReward(Composite):
    """`sum(weight * reward)`; a part of weight zero is only reported.

    Its name is the text that makes it: `"hpsv2=0.7,aesthetic=0.3"`. Each part batches for itself
    and sees all images; a part that appears twice keeps both entries (`name`, `name#2`).

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
        terms: Sequence[Term],
        names: Sequence[str] | None = None,
        *,
        clip_gradient: float | None = None,
    ) -> None:
        self.rewards, self.weights = name_terms(terms, names)
        self.clip_gradient = as_positive("clip_gradient", clip_gradient)
        self.name = write_mixture("sum", self.weights)
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
        example = next(iter(parts.values()))
        total = example.new_zeros(len(example))
        for name, weight in self.weights.items():
            if weight:
                total = total + weight * self.score_part(name, parts, groups)
        return total

    def _range(self) -> tuple[float, float]:
        low = high = 0.0
        for name, weight in self.weights.items():
            if weight:
                ends = sorted(weight * end for end in self.rewards[name].range)
                low, high = low + ends[0], high + ends[1]
        return low, high


def terms(reward: Reward, weight: float = 1.0) -> list[Term]:
    """A reward as `(reward, weight)` pairs; a weighted sum that does not clip is opened up.

    Raises:
        ValueError: Not a reward, or a weight that is not a finite number.
    """
    check_reward(reward)
    if isinstance(reward, WeightedReward) and reward.clip_gradient is None:
        factor = as_weight(reward.name, weight)
        return [(r, factor * reward.weights[name]) for name, r in reward.rewards.items()]
    return [(reward, weight)]


def check_batch(batch: int | None) -> int | None:
    """`batch` itself; ValueError unless it is at least 1, or None."""
    if batch is not None and batch < 1:
        raise ValueError(f"batch={batch}: score at least one image at a time, or None for all")
    return batch
