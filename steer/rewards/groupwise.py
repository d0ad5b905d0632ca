"""Rewards that see all candidates of a prompt at once: ranking judges, diversity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steer.core.types import Reward
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.inputs import Images, as_batches, as_prompts
from steer.rewards.parts import Composed, Parts, as_scores, rows_by_group, text_of, told
from steer.rewards.sharing import once


class Groupwise(BaseReward):
    """A reward that looks at single images, and then compares those of a prompt.

    `look` may be called a batch at a time, as images are decoded; `compare` is given what it
    returned for all candidates of one prompt, and for no other: previews of one step, or finished
    images of the call so far. Scores are relative: they say nothing across calls, cannot be held
    against a threshold, and have no gradient.

    Attributes:
        groupwise: True: whatever calls the reward has to hand over whole groups.
        relative: True: a score depends on the other candidates.
        rewards: None: it is no sum of others.
        batch: Most images in one call of `look`.
        videos: Whether `look` takes videos `(b, F, 3, H, W)`; one that does not is refused on
            pipelines of videos.
    """

    groupwise = True
    relative = True
    videos = False

    @property
    def rewards(self) -> dict[str, Reward]:
        """No parts."""
        return {}

    def look(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the comparison needs of each image, `(b, ...)`; the images themselves by default.

        Args:
            images: Float `(b, 3, H, W)` in [0, 1], on `device`.
            prompts: One per image.
        """
        return images

    @abstractmethod
    def compare(self, looks: Tensor, prompt: str) -> Tensor:
        """Scores `(n,)` of the n candidates of one prompt, n at least 1; higher is better.

        Args:
            looks: What `look` returned, `(n, ...)`.
            prompt: Of all of them.
        """

    @torch.no_grad()
    def parts(self, images: Images, prompts: str | Sequence[str]) -> Parts:
        """What `look` returns of every image, `(B, ...)`, by the reward's name.

        Raises:
            ValueError: Images or prompts that do not fit, or images of several sizes where they
                are compared themselves.
        """
        batches = self._batches(images)
        texts, found, start = as_prompts(prompts, sum(map(len, batches))), [], 0
        for batch in batches:
            size = self.batch or len(batch)
            for chunk in once(batch, ("split", size), lambda b=batch, n=size: b.split(n)):
                moved = chunk.to(self.device or chunk.device)
                with told(self.name):
                    found.append(self.look(moved, texts[start : start + len(chunk)]).detach())
                start += len(chunk)
        shapes = {tuple(look.shape[1:]) for look in found}
        if len(shapes) > 1:
            raise ValueError(
                f"images of several sizes {sorted(shapes)} under reward {self.name!r}, which "
                "compares them: give it images of one size"
            )
        return {self.name: torch.cat(found)}

    @torch.no_grad()
    def combine(
        self, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None = None
    ) -> Tensor:
        """Scores `(B,)` float32 of what `parts` returned, group by group.

        Args:
            parts: Of any number of batches put together.
            groups: One key per image, see `steer.rewards.parts.Group`; `None` is one group.

        Raises:
            RewardError: `compare` returned something else than one score per candidate.
        """
        looks = parts[self.name]
        scores = torch.zeros(len(looks), device=looks.device)
        for rows in rows_by_group(groups, len(looks)):
            prompt = "" if groups is None else text_of(groups[rows[0]])
            own = looks[torch.from_numpy(rows).to(looks.device)].to(self.device or looks.device)
            with told(self.name):
                found = self.compare(own, prompt)
            scores[torch.from_numpy(rows).to(looks.device)] = as_scores(self.name, found, own).to(
                looks.device
            )
        return scores

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Score images, `(B,)` float32; images of equal prompts are compared."""
        parts = self.parts(images, prompts)
        return self.combine(parts, as_prompts(prompts, len(parts[self.name])))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores `(b,)` of images, as a call returns them."""
        return self(images, prompts)

    def _batches(self, images: Images) -> list[Tensor]:
        if self.videos and isinstance(images, Tensor) and images.ndim == 5:
            return [images]
        return as_batches(images)


class WholeGroups(Groupwise):
    """A reward or function that declares `groupwise = True`, called with whole groups only.

    Each call has all candidates of one prompt, `(n, 3, H, W)`, and that prompt n times.

    Args:
        reward: What is called.

    Raises:
        ValueError: It splits its images into batches.
    """

    def __init__(self, reward: Reward) -> None:
        check_batchless(reward)
        self.reward, self.name = reward, reward.name
        self.range, self.needs_prompt = reward.range, reward.needs_prompt
        self.version = str(getattr(reward, "version", None) or "")
        self.family = str(getattr(reward, "family", None) or "")
        self.videos = bool(getattr(reward, "videos", False))

    def compare(self, looks: Tensor, prompt: str) -> Tensor:
        """The reward's own scores of one group."""
        return self.reward(looks, [prompt] * len(looks))


class Diversity(Groupwise):
    """How unlike the other candidates of its prompt an image is: their mean distance, in [0, 2].

    Distances are `1 - cosine` of the unit features that a CLIP-like reward computes; a candidate
    without others gets 0. In a sum, a positive weight prefers the odd picture, a negative one the
    typical one.

    Args:
        reward: One with `embed`, such as `"clip:*"`, `"hpsv2"`, `"shapes-clip"`.
        batch: Most images embedded at once; `None` is all of them.

    Raises:
        ValueError: The reward has no image features.
    """

    range = (0.0, 2.0)
    needs_prompt = False
    videos = True

    def __init__(self, reward: Reward, *, batch: int | None = 32) -> None:
        self.embed: Any = getattr(reward, "embed", None)
        if not callable(self.embed):
            raise ValueError(
                f"diversity of {reward.name!r}: it has no image features; name a CLIP-like reward, "
                "as in 'diversity:clip:ViT-B-32:openai' or 'diversity:hpsv2'"
            )
        self.reward, self.name = reward, f"diversity:{reward.name}"
        self.batch = check_batch(batch)
        self.device: torch.device | None = getattr(reward, "device", None)
        self.version = str(getattr(reward, "version", None) or "")

    def look(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Unit features `(b, D)`; of a video, its middle frame's."""
        return self.embed(images)

    def compare(self, looks: Tensor, prompt: str) -> Tensor:
        """The mean distance of each to the others, `(n,)`."""
        others = len(looks) - 1
        if not others:
            return torch.zeros(1, device=looks.device)
        cosines = looks.double() @ looks.double().T
        return 1 - (cosines.sum(1) - cosines.diagonal()) / others


def whole_groups(reward: Reward) -> Reward:
    """The reward itself, or `WholeGroups` of one that declares `groupwise` and nothing more."""
    declared = bool(getattr(reward, "groupwise", False))
    return WholeGroups(reward) if declared and not isinstance(reward, Composed) else reward


def check_batchless(reward: Reward) -> None:
    """Raise ValueError unless a groupwise reward takes all images in one call."""
    batch = getattr(reward, "batch", None)
    if batch is not None:
        raise ValueError(
            f"reward {reward.name!r} is groupwise and has batch={batch}, which would split a "
            "prompt's candidates: set batch=None, or derive it from steer.rewards.Groupwise, whose "
            "`look` is batched"
        )
