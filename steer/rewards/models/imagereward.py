"""ImageReward v1.0: a BLIP that was trained on experts' rankings of generated images.

Xu et al. 2023 (arXiv:2304.05977); model, preprocessing and score as the reference implementation
(github.com/THUDM/ImageReward, ImageReward/ImageReward.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from steer.rewards.models.blip import LINEAR
from steer.rewards.models.blip_reward import BlipReward, Scale, open_blip


SCALE = Scale(window=35, mean=0.16717362830052426, std=1.0333394966054072)


def imagereward(
    *,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    revision: str | None = None,
    model_config: Mapping[str, Mapping[str, Any]] | None = None,
) -> BlipReward:
    """ImageReward v1.0: `(x - 0.1672) / 1.0333` for the network's x; about -2.3 to 2, unbounded.

    The shortest side is resized to 224 (antialiased bicubic) and the centre is cropped; prompts are
    cut after 33 word pieces, with a warning. Differentiable with respect to the images.

    Args:
        checkpoint: A local `.pt` or `.safetensors` with the published names; default the published
            file, through the Hugging Face cache.
        tokenizer: A folder with the tokenizer of bert-base-uncased, or its `vocab.txt`; default
            the published vocabulary.
        device: Default: the accelerator if there is one.
        dtype: Precision of the two towers; default float32.
        batch: Most images scored at once.
        revision: Commit, tag or branch of the weights repository; default the pinned one.
        model_config: For weights of another size: `{"vision": {...}, "text": {...}}` with what
            differs, in the names of `BlipVisionConfig` and `BlipTextConfig`.

    Raises:
        ValueError: An unknown part in `model_config`, or `batch` below 1.
        CheckpointError: Weights or a tokenizer that cannot be found, read, or do not fit.
    """
    return open_blip(
        "imagereward",
        LINEAR,
        SCALE,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        batch=batch,
        revision=revision,
        model_config=model_config,
    )
