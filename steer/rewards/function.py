"""Plain functions as rewards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steer.core.errors import RewardError
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.inputs import Images, Outputs, as_prompts
from steer.rewards.parts import as_scores, told


class FunctionReward(BaseReward):
    """A function `(images, prompts) -> (B,)` as a reward.

    What the function does not declare is not guessed: attributes left out here are read off the
    function (`f.differentiable = True`), else it counts as not differentiable, unbounded and
    depending on the prompt. It may return a tensor or a sequence of B numbers. One that declares
    `f.videos = True` is given the videos of a video pipeline whole, `(B, F, 3, H, W)`. Where a
    pipeline makes no images (audio, meshes) it is given a list of the pipeline's own outputs, one
    per row.

    Args:
        function: Gets float images `(B, 3, H, W)` in [0, 1] and a list of B prompts.
        name: Default: the function's own name.
        differentiable: Whether gradients reach the images.
        range: Smallest and largest possible score.
        needs_prompt: Whether the score depends on the prompt.
        groupwise: Whether it must see all candidates of a prompt in one call; `steer.reward` then
            makes `WholeGroups` of it.
        batch: Most images per call; default all of them.

    Raises:
        ValueError: The function cannot be called with images and prompts.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        differentiable: bool | None = None,
        range: tuple[float, float] | None = None,
        needs_prompt: bool | None = None,
        groupwise: bool | None = None,
        batch: int | None = None,
    ) -> None:
        _check_signature(function)
        self.function = function
        given = {
            "differentiable": differentiable,
            "range": range,
            "needs_prompt": needs_prompt,
            "groupwise": groupwise,
        }
        for attribute, value in given.items():
            declared = getattr(function, attribute, getattr(type(self), attribute))
            setattr(self, attribute, declared if value is None else value)
        self.videos = bool(getattr(function, "videos", False))
        self.family = str(getattr(function, "family", ""))
        self.name = name or _name(function)
        self.batch = check_batch(batch)

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Score images, as `BaseReward` does; videos all at once, where the function takes them."""
        whole = self.videos and isinstance(images, Tensor) and images.ndim == 5
        if whole or isinstance(images, Outputs):
            assert isinstance(images, Tensor | Outputs)
            scores = self.score(images, as_prompts(prompts, len(images)))
            return as_scores(self.name, scores, images)
        return super().__call__(images, prompts)

    def score(self, images: Any, prompts: Sequence[str]) -> Tensor:
        with told(self.name):
            scores = self.function(images, list(prompts))
        if isinstance(scores, Tensor):
            return scores
        try:
            return torch.as_tensor(scores, dtype=torch.float32, device=images.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RewardError(
                f"reward {self.name!r} returned {type(scores).__name__}: it must return a tensor "
                f"or {len(images)} numbers, one per image"
            ) from error


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "name", None) or getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def _check_signature(function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none: the first call will tell
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ValueError(
            f"reward function {_name(function)!r} has the signature {signature}: it must take "
            "(images, prompts); to ignore the prompts write "
            "`def my_reward(images, prompts): ...` and set `my_reward.needs_prompt = False`"
        ) from error
