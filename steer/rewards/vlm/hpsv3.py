"""HPS v3: Qwen2-VL-7B with a head that says how much people would like an image for its prompt.

Ma et al. 2025 (arXiv:2508.03789); prompt, preprocessing and head as the reference implementation
(github.com/MizzenAI/HPSv3, commits 72b7eba and d232ff8; PyPI hpsv3 1.0.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer.core.weights.reading import fingerprint
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.families import FAMILIES
from steer.rewards.vlm import prompts as texts
from steer.rewards.vlm.patches import Patches
from steer.rewards.vlm.qwen import Head, Loaded, open_qwen


NAME = "hpsv3"
AREA = 256 * 28 * 28
"""Pixels of every image, up to whole tokens."""

HEAD = Head("7b", marks=("<|Reward|>",), layers=(1024, 16), outputs=2, bias=True)


class HpsV3Reward(BaseReward):
    """The mean of the score that the model predicts; unbounded, differentiable.

    Args:
        loaded: The model.
        batch: Most images scored at once.
    """

    name = NAME
    family = FAMILIES[NAME]
    differentiable = True
    needs_prompt = True

    def __init__(self, loaded: Loaded, *, batch: int | None = 4) -> None:
        self.loaded, self.version = loaded, fingerprint(loaded.scorer)
        self.device = loaded.device
        self.batch = check_batch(batch)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for a prompt with one of the model's special tokens."""
        self.loaded.check_prompts(prompts)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.both(images, prompts)[0]

    def both(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the predicted score, each `(B,)`.

        The head's second number is the logarithm of the deviation, as in the authors' loss.

        Args:
            images: Float `(B, 3, H, W)` in [0, 1].
            prompts: One per image.
        """
        mean, spread = self.loaded(images, prompts)[:, 0].unbind(-1)
        return mean, spread.exp()


def hpsv3(
    *,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 4,
    revision: str | None = None,
    model_config: Mapping[str, Mapping[str, Any]] | None = None,
) -> HpsV3Reward:
    """HPS v3: the predicted mean of people's preference; compares images of one prompt.

    Images are resized to at most 200,704 pixels at their own shape (antialiased bicubic); smaller
    ones are enlarged to at least that. Differentiable with respect to the images.

    Args:
        checkpoint: A local `.safetensors` or torch file with the published names; default the
            published file (16.5 GB), through the Hugging Face cache.
        tokenizer: A local `tokenizer.json` of Qwen/Qwen2-VL-7B-Instruct; default the published one.
        device: Default: the accelerator if there is one.
        dtype: Precision of Qwen; default the stored one, bfloat16. The head stays in float32.
        batch: Most images scored at once.
        revision: Commit, tag or branch of the weights; default the pinned commit.
        model_config: For a model of another size: what differs under `"vision"` and `"text"`, in
            the names of `Qwen2VLConfig`.

    Raises:
        ValueError: An unknown part in `model_config`, or `batch` below 1.
        CheckpointError: Weights or a tokenizer that cannot be found, read, or do not fit.
    """
    loaded = open_qwen(
        NAME,
        HEAD,
        Patches(least=AREA, most=AREA),
        texts.read(NAME),
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        revision=revision,
        model_config=model_config,
    )
    return HpsV3Reward(loaded, batch=batch)
