"""What can be asked of any reward by its structure: its parts, their scores, its identity.

A reward that is made of others has `rewards`, scores images in two halves (`parts`, `combine`), and
says whether it is `relative`. That is all that these functions look at: rewards of users' own are
taken as ours are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from types import FunctionType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.core.errors import RewardError
from steer.core.types import Reward
from steer.rewards.gradients import score_with_clipped_gradient
from steer.rewards.inputs import Images, Outputs, as_batches, as_prompts
from steer.rewards.sharing import sharing


Parts: TypeAlias = dict[str, Tensor]
"""Scores `(B,)` by part; what a groupwise reward sees of each image, `(B, ...)`."""


class Group(NamedTuple):
    """The candidates of one prompt of a call, for rewards that compare them.

    Attributes:
        prompt: Its text.
        number: Its place in the call: prompts of equal text are groups of their own.
    """

    prompt: str
    number: int


@runtime_checkable
class Composed(Protocol):
    """A reward made of others, which scores images in two halves.

    `parts` looks at single images, so it may be called a batch at a time; `combine` may compare the
    images of a group (a prompt) with each other, so it must see all of them at once.

    Attributes:
        rewards: The parts by name.
        relative: Whether a score depends on the other images of the group.
    """

    rewards: dict[str, Reward]
    relative: bool

    def parts(self, images: Images, prompts: str | Sequence[str]) -> Parts:
        """Every part's own scores `(B,)`, by name; see `Parts`."""
        ...

    def combine(
        self, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None = None
    ) -> Tensor:
        """What `parts` returned as one score per image, `(B,)` float32."""
        ...


def is_relative(reward: Reward) -> bool:
    """Whether scores compare an image with the other candidates of its prompt."""
    return isinstance(reward, Composed) and bool(reward.relative)


def is_groupwise(reward: Reward) -> bool:
    """Whether a reward, or a part of it, sees all candidates of a prompt at once."""
    own = bool(getattr(reward, "groupwise", False))
    return own or any(map(is_groupwise, rewards_in(reward).values()))


def check_pointwise(reward: Reward, what: str) -> None:
    """Raise ValueError if `reward` is groupwise, so that `what` cannot be made of it."""
    if is_groupwise(reward):
        raise ValueError(
            f"{what} of reward {reward.name!r}, which compares the images of a prompt: there is "
            "nothing to average; use a reward that scores images one by one"
        )


def text_of(group: Hashable) -> str:
    """The prompt of a group: that of a `Group`, or the key itself where it is a text."""
    if isinstance(group, Group):
        return group.prompt
    return group if isinstance(group, str) else ""


def rows_by_group(groups: Sequence[Hashable] | None, count: int) -> list[NDArray[np.intp]]:
    """Row indices of every group, in order of appearance; all rows where `groups` is None.

    Raises:
        ValueError: Not one key per row.
    """
    if groups is None:
        return [np.arange(count)]
    if len(groups) != count:
        raise ValueError(f"len(groups)={len(groups)} for {count} images: pass one key per image")
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(groups):
        rows.setdefault(key, []).append(row)
    return [np.array(found) for found in rows.values()]


def check_absolute(reward: Reward, what: str) -> None:
    """Raise ValueError if `reward` is relative, so that `what` cannot be asked of it."""
    if is_relative(reward) and is_groupwise(reward):
        raise ValueError(
            f"{what} cannot be held against reward {reward.name!r}, which scores all candidates of "
            "a prompt together: use a reward that scores images one by one"
        )
    if is_relative(reward):
        raise ValueError(
            f"{what} cannot be held against reward {reward.name!r}, whose scores only rank the "
            "candidates of a prompt: use an absolute reward (combine='sum', or a single one), or "
            "ask for minima of its parts with minimum={'aesthetic': 5.0}"
        )


def check_reward(reward: object) -> None:
    """Raise ValueError unless `reward` is a reward object: no name, no class, no plain function."""
    if not is_reward(reward):
        raise ValueError(f"{reward!r} is not a reward: wrap it with steer.reward(...)")
    if is_groupwise(reward) and not isinstance(reward, Composed):
        raise ValueError(f"{reward!r} is groupwise: wrap it with steer.reward(...)")


def is_reward(value: object) -> TypeGuard[Reward]:
    """Whether `value` is a reward object.

    A function is none, even with all of a reward's attributes: nobody checks what it returns.
    """
    return isinstance(value, Reward) and not isinstance(value, type | FunctionType)


def identity(reward: str | Reward, version: str = "") -> tuple[str, str]:
    """Name and version of a reward; a reward that declares no `version` has the empty one.

    The version of a composition without one of its own is those of its parts, in order.
    """
    if isinstance(reward, str):
        return reward, version
    own = version or str(getattr(reward, "version", None) or "")
    inner = map(identity, rewards_in(reward).values())
    return reward.name, own or "+".join(filter(None, (found for _, found in inner)))


def rewards_in(reward: Reward) -> Mapping[str, Reward]:
    """The rewards that a reward declares to be made of, by name; empty where it is a single one."""
    inner: Any = getattr(reward, "rewards", None)
    return inner if isinstance(inner, Mapping) else {}


def check_prompts(reward: Reward, prompts: Sequence[str]) -> None:
    """See that a reward and its parts can score these prompts, before anything is drawn for them.

    A reward says what it needs of a prompt beside its being there by a method
    `check_prompts(prompts)` that raises ValueError.
    """
    check: Any = getattr(reward, "check_prompts", None)
    if callable(check):
        check(prompts)
    for part in rewards_in(reward).values():
        check_prompts(part, prompts)


def parts_of(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Parts:
    """The scores of a reward's parts, by name; a reward without parts is its own only part."""
    if isinstance(reward, Composed):
        with told(reward.name):
            return reward.parts(images, prompts)
    return {reward.name: scores_of(reward.name, reward, images, prompts)}


def combine_parts(
    reward: Reward, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None
) -> Tensor:
    """What `parts_of` returned (of one batch or of several, put together) as scores `(B,)`."""
    if isinstance(reward, Composed):
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
    """Scores of all images under every reward.

    Args:
        rewards: By name.
        images: As rewards take them; a tensor of videos `(B, F, 3, H, W)` goes on as it is.
        prompts: One per image, or one string for all.
        silent: Names of rewards that are scored without gradient.
        clip_gradient: Largest norm of each reward's gradient with respect to each image.

    Returns:
        `(B,)` float32 by name; a relative reward shows its parts, as `"<name>/<part>"`.
    """
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


def scores_of(name: str, reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The scores `(B,)` float32 of images under one reward, as `as_scores` checks them.

    Raises:
        RewardError: It returns no score per image, or raises StopIteration.
    """
    with told(name):
        scores = reward(images, prompts)
    return as_scores(name, scores, images)


@contextmanager
def told(name: str) -> Iterator[None]:
    """Make StopIteration, which would end whatever loop is above, an error of the reward `name`."""
    try:
        yield
    except StopIteration as error:
        raise RewardError(
            f"reward {name!r} raised StopIteration: it asks an iterator for more than it holds; "
            "use next() with a default there, or a list"
        ) from error


def as_scores(name: str, scores: Tensor, images: Tensor | Outputs) -> Tensor:
    """What a reward returned for `images`, as `(B,)` float32 on their device.

    Args:
        name: How the reward is called in errors.
        scores: What it returned.
        images: What it was given, `(B, ...)`.

    Raises:
        RewardError: It is not a dense tensor of one real score per image.
    """
    odd = _kind_of_no_scores(scores) if isinstance(scores, Tensor) else ""
    if odd:
        raise RewardError(
            f"reward {name!r} returned a tensor that is {odd}: it must return a dense one of real "
            f"numbers, one score per image, ({len(images)},)"
        )
    found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(scores, Tensor) or found != (len(images),):
        raise RewardError(
            f"reward {name!r} returned {found} for {len(images)} images: it must return a tensor "
            f"with one score per image, ({len(images)},)"
        )
    return scores.to(images.device, torch.float32)


def _kind_of_no_scores(scores: Tensor) -> str:
    """What keeps a tensor from being scores, whatever its shape; empty where nothing does."""
    kinds = {
        "nested": scores.is_nested,
        "sparse": scores.layout != torch.strided,
        "quantised": scores.is_quantized,
        "complex": scores.is_complex(),
        "without data (on the meta device)": scores.is_meta,
    }
    return next((kind for kind, found in kinds.items() if found), "")


def _score_one(
    name: str, reward: Reward, images: Tensor, prompts: list[str], clip_gradient: float | None
) -> Parts:
    if is_relative(reward):
        inner = parts_of(reward, images, prompts)
        return {f"{name}/{key}": value for key, value in inner.items()}

    def score(x: Tensor) -> Tensor:
        return scores_of(name, reward, x, prompts)

    if clip_gradient is not None and reward.differentiable:
        return {name: score_with_clipped_gradient(score, images, clip_gradient)}
    return {name: score(images)}
