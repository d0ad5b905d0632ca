"""UnifiedReward 2.0: a vision-language model that writes scores of an image, and a parser of them.

Wang et al. 2025 (arXiv:2503.05236); the question is that of the reference implementation
(github.com/CodeGoat24/UnifiedReward, commit ed52f98, `point_score_ACS_image_generation.py`).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from steer.core.errors import CheckpointError, RewardError
from steer.core.weights.reading import fingerprint
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.families import family_of
from steer.rewards.models.clip import default_device
from steer.rewards.vlm import prompts as texts
from steer.rewards.vlm.answers import Answerer
from steer.rewards.vlm.loading import open_answerer


NAME = "unifiedreward"
MODEL = "CodeGoat24/UnifiedReward-2.0-qwen3vl-4b"
AXES = ("alignment", "coherence", "style")
LOWEST, HIGHEST = 1.0, 5.0

Axis = Literal["mean", "alignment", "coherence", "style"]

_LINE = re.compile(r"\b(alignment|coherence|style) score \(1-5\):\s*([-+]?\d+(?:\.\d+)?)", re.I)


class UnifiedReward(BaseReward):
    """What the model writes as its scores, 1 to 5; not differentiable, since it writes.

    Args:
        answerer: One of Qwen's models.
        axis: One of `AXES`, or their `"mean"`.
        unread: The score of a text that has no such score; `None` raises an error.
        tokens: Most tokens that the model may write.
        template: Variables for the model's chat template.
        batch: Most images scored at once.
    """

    differentiable = False
    range = (LOWEST, HIGHEST)
    needs_prompt = True

    def __init__(
        self,
        answerer: Answerer,
        *,
        axis: Axis = "mean",
        unread: float | None = None,
        tokens: int = 128,
        template: Mapping[str, Any] | None = None,
        batch: int | None = 8,
    ) -> None:
        if axis not in ("mean", *AXES):
            raise ValueError(f"axis={axis!r}: one of {', '.join(map(repr, ('mean', *AXES)))}")
        if unread is not None and not (math.isfinite(unread) and LOWEST <= unread <= HIGHEST):
            raise ValueError(f"unread={unread!r}: a score from {LOWEST:g} to {HIGHEST:g}, or None")
        if tokens < 1:
            raise ValueError(f"tokens={tokens}: the model must write at least one")
        self.name = NAME if axis == "mean" else f"{NAME}:{axis}"
        self.family = family_of(self.name)
        self.answerer, self.version = answerer, fingerprint(answerer.model)
        self.axis: Axis = axis
        self.unread, self.tokens, self.template = unread, tokens, template
        self.batch = check_batch(batch)
        self.device = answerer.device

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        written = self.write(images, prompts)
        found = [self._read(text, prompt) for text, prompt in zip(written, prompts, strict=True)]
        return torch.tensor(found, device=self.device)

    def write(self, images: Tensor, prompts: Sequence[str]) -> list[str]:
        """What the model writes about each image, greedily.

        Args:
            images: Float `(B, 3, H, W)` in [0, 1].
            prompts: One per image.
        """
        question = texts.read(NAME)
        asked = [question.replace("{prompt}", prompt) for prompt in prompts]
        inputs = self.answerer.inputs(images, asked, self.template, padding="left")
        return self.answerer.write(inputs, self.tokens)

    def _read(self, text: str, prompt: str) -> float:
        scores = scores_in(text)
        wanted = AXES if self.axis == "mean" else (self.axis,)
        if all(axis in scores for axis in wanted):
            return sum(scores[axis] for axis in wanted) / len(wanted)
        if self.unread is not None:
            return self.unread
        raise RewardError(
            f"reward {self.name!r}: the model wrote {text!r} for the prompt {prompt!r}, without a "
            f"line 'Alignment Score (1-5): X' for each of {', '.join(wanted)} with X from 1 to 5: "
            "raise tokens=, pass unread=1.0 to score such texts so, or take another model"
        )


def scores_in(text: str) -> dict[str, float]:
    """The scores in a text by axis; the last where there are several, and none outside 1 to 5."""
    found = {axis.lower(): float(number) for axis, number in _LINE.findall(text)}
    return {axis: score for axis, score in found.items() if LOWEST <= score <= HIGHEST}


def unifiedreward(
    axis: Axis = "mean",
    *,
    model: str = MODEL,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 8,
    revision: str | None = None,
    unread: float | None = None,
    tokens: int = 128,
    template: Mapping[str, Any] | None = None,
) -> UnifiedReward:
    """UnifiedReward 2.0, of the Qwen family: written scores of alignment, coherence and style.

    The reward `"unifiedreward"` is the mean of the three, `"unifiedreward:alignment"` one of them.
    Greedy, so the same image and prompt always score the same. (The authors' client asks a server
    that may draw.)

    Args:
        axis: Which score; by name, what follows the colon.
        model: Hub id of another of its models, such as `"CodeGoat24/UnifiedReward-2.0-qwen-7b"`.
        checkpoint: A local folder in place of the hub.
        device: Default: the accelerator if there is one.
        dtype: Precision of the weights; default the stored one.
        batch: Most images scored at once.
        revision: Commit, tag or branch on the hub; default its main branch.
        unread: The score of a text without scores; default an error that shows the text.
        tokens: Most tokens that the model may write; the answer takes about 50.
        template: Variables for the chat template, as `{"enable_thinking": False}`.

    Raises:
        ValueError: An unknown axis, `unread` outside 1 to 5, `tokens` or `batch` below 1.
        CheckpointError: A model that cannot be found, read, or is not one of Qwen's.
    """
    answerer = open_answerer(model, checkpoint, revision, default_device(device), dtype)
    if answerer.patches is None:
        raise CheckpointError(
            f"model {str(checkpoint or model)!r} is not one of Qwen's (Qwen2-VL, Qwen2.5-VL, "
            f"Qwen3-VL): pass a UnifiedReward of that family, such as {MODEL!r}"
        )
    options: dict[str, Any] = {"tokens": tokens, "template": template, "batch": batch}
    return UnifiedReward(answerer, axis=axis, unread=unread, **options)


unifiedreward_alignment = functools.partial(unifiedreward, "alignment")
unifiedreward_coherence = functools.partial(unifiedreward, "coherence")
unifiedreward_style = functools.partial(unifiedreward, "style")
