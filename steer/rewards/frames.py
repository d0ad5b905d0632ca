"""Videos under rewards for images: every frame is scored, and one declared number is made of it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from steer.core.errors import NotFiniteError
from steer.core.types import Reward
from steer.rewards.base import Composite
from steer.rewards.inputs import Images, as_batches, as_prompts
from steer.rewards.parts import (
    Parts,
    check_pointwise,
    check_reward,
    combine_parts,
    is_relative,
    parts_of,
    rewards_in,
)
from steer.rewards.sharing import once


Aggregate = Literal["mean", "min", "last"]
_CHOICES: tuple[Aggregate, ...] = ("mean", "min", "last")


class PerFrame(Composite):
    """A reward for images as a reward for videos `(B, F, 3, H, W)`.

    Every frame is an image of its own under the video's prompt, and a video's score is the mean of
    its frames' scores, the smallest of them, or the last frame's. Images count as videos of one
    frame. Gradients flow to the frames that are scored. Frames go through the reward in its own
    micro-batches.

    A weighted sum is summed frame by frame, so that `min` is the smallest sum; of a reward that
    ranks candidates every part is aggregated first, and the videos are ranked by that.

    Args:
        reward: What scores a frame.
        aggregate: `"mean"`, `"min"`, or `"last"`, which scores no other frame.
        every: Score the first frame and every so many after it.

    Raises:
        ValueError: Not a reward, an unknown aggregate, `every` below 1, or a reward that scores
            videos already.
    """

    videos = True

    def __init__(self, reward: Reward, aggregate: Aggregate = "mean", *, every: int = 1) -> None:
        check_reward(reward)
        check_pointwise(reward, "frames")
        if aggregate not in _CHOICES:
            raise ValueError(f"aggregate={aggregate!r}: one of {', '.join(map(repr, _CHOICES))}")
        if type(every) is not int or every < 1:
            raise ValueError(f"every={every!r}: must be a whole number, at least 1")
        if aggregate == "last" and every != 1:
            raise ValueError(f"every={every} with aggregate='last': one frame is scored; leave out")
        if takes_videos(reward):
            raise ValueError(f"reward {reward.name!r} scores videos already; use it as it is")
        self.reward = reward
        self.aggregate: Aggregate = aggregate
        self.every = every
        self.name = f"{reward.name} per frame ({self._how})"
        self.rewards = {reward.name: reward}
        self.relative = is_relative(reward)
        self.differentiable = reward.differentiable
        self.range = reward.range
        self.needs_prompt = reward.needs_prompt

    @property
    def _how(self) -> str:
        return self.aggregate if self.every == 1 else f"{self.aggregate}, every {self.every}"

    def __repr__(self) -> str:
        every = "" if self.every == 1 else f", every={self.every}"
        return f"PerFrame({self.reward.name!r}, aggregate={self.aggregate!r}{every})"

    def frames(self, count: int) -> list[int]:
        """Which of `count` frames are scored."""
        return [count - 1] if self.aggregate == "last" else list(range(0, count, self.every))

    def parts(self, images: Images, prompts: str | Sequence[str]) -> Parts:
        """Scores `(B,)` over the frames: the reward's own, and those of its parts if it has some.

        Args:
            images: Videos, as `as_videos` takes them, or images.
            prompts: One per video, or one string for all.

        Raises:
            ValueError: Videos or prompts that do not fit.
            NotFiniteError: NaN pixels; its index is the video's.
        """

        def read() -> Tensor:
            return as_videos(images)

        videos = once(images, ("videos",), read) if isinstance(images, Tensor) else read()
        texts = as_prompts(prompts, len(videos))
        chosen = self.frames(videos.shape[1])
        flat = once(videos, ("frames", *chosen), lambda: videos[:, chosen].flatten(0, 1))
        try:
            found = parts_of(self.reward, flat, [text for text in texts for _ in chosen])
        except NotFiniteError as error:
            raise NotFiniteError(error.index // len(chosen)) from error
        if not self.relative:
            found[self.reward.name] = combine_parts(self.reward, found, None)
        return {
            name: self._aggregate(scores.unflatten(0, (len(videos), len(chosen))))
            for name, scores in found.items()
        }

    def combine(
        self, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None = None
    ) -> Tensor:
        """What `parts` returned as one score per video, `(B,)`."""
        if self.relative:
            return combine_parts(self.reward, parts, groups)
        return parts[self.reward.name]

    def _aggregate(self, scores: Tensor) -> Tensor:
        """`(B, frames)` to `(B,)`."""
        return scores.amin(1) if self.aggregate == "min" else scores.mean(1)


def takes_videos(reward: Reward) -> bool:
    """Whether a reward scores `(B, F, 3, H, W)`: it declares `videos = True`, or has such a part.

    A reward of the user's own for whole videos declares it and is called with the tensor as it is.
    """
    inner = rewards_in(reward).values()
    return bool(getattr(reward, "videos", False)) or any(map(takes_videos, inner))


def for_videos(reward: Reward) -> Reward:
    """A reward for videos: one for images as `PerFrame` with the mean, others as they are."""
    return reward if takes_videos(reward) else PerFrame(reward)


def count_images(reward: Reward, images: Tensor) -> int:
    """Images that a reward looks at in `(B, 3, H, W)` images or `(B, F, 3, H, W)` videos."""
    if images.ndim != 5:
        return len(images)
    return len(images) * _count_frames(reward, images.shape[1])


def _count_frames(reward: Reward, count: int) -> int:
    if isinstance(reward, PerFrame):
        return len(reward.frames(count))
    return max((_count_frames(part, count) for part in rewards_in(reward).values()), default=1)


def as_videos(images: Any) -> Tensor:
    """Videos as one float tensor `(B, F, 3, H, W)` in [0, 1]; images as videos of one frame.

    Args:
        images: A tensor `(B, F, 3, H, W)` or channels-last array `(B, F, H, W, 3)`, float in
            [0, 1] or uint8; a list of videos, each a list of PIL images; or images, as rewards
            take them.

    Raises:
        ValueError: Wrong shape or range, or videos of different sizes; `NotFiniteError` for NaN.
    """
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 5:
        return _stack_videos(
            images.flatten(0, 1) if isinstance(images, Tensor) else _flat(images),
            images.shape[0],
            images.shape[1],
        )
    if isinstance(images, Sequence) and images and isinstance(images[0], list | tuple):
        lengths = {len(video) for video in images}
        if len(lengths) > 1:
            raise ValueError(f"videos of {sorted(lengths)} frames: score those of a length at once")
        return _stack_videos(
            [frame for video in images for frame in video], len(images), lengths.pop()
        )
    return _one_size(as_batches(images))[:, None]


def as_moving(images: Any, name: str, least: int) -> Tensor:
    """Videos, as `as_videos` takes them, for a reward that judges their motion.

    Args:
        images: What the reward was given.
        name: The reward's.
        least: Fewest frames that it scores.

    Raises:
        ValueError: As `as_videos`; or images, or videos of fewer frames.
    """
    videos = as_videos(images)
    if videos.shape[1] < least:
        raise ValueError(
            f"reward {name!r} got images, or videos of one frame: it judges motion, pass videos "
            "(B, F, 3, H, W) of two frames or more"
        )
    return videos


def _flat(videos: np.ndarray) -> np.ndarray:
    return videos.reshape(-1, *videos.shape[2:])


def _stack_videos(frames: Images, count: int, length: int) -> Tensor:
    """All frames of `count` videos as `(count, length, 3, H, W)`."""
    try:
        return _one_size(as_batches(frames)).unflatten(0, (count, length))
    except NotFiniteError as error:
        raise NotFiniteError(error.index // length) from error


def _one_size(batches: list[Tensor]) -> Tensor:
    if len({batch.shape[1:] for batch in batches}) > 1:
        raise ValueError("frames of different sizes: score videos of one size at once")
    return torch.cat(batches)
