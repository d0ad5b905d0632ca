"""CycleReward: a BLIP that was trained without people, on what survives a cycle of models.

A picture is preferred whose caption (or a caption whose picture) leads back to where it came from.
Bahng, Chan et al. 2025 (arXiv:2506.02095); model, preprocessing and score as the reference
implementation (github.com/hjbahng/cyclereward, commit 36e1077).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from steer.rewards.models.blip import GELU
from steer.rewards.models.blip_reward import BlipReward, Scale, open_blip


VARIANTS = ("combo", "t2i", "i2t")
SCALE = Scale(window=128)


def cyclereward(
    variant: Literal["combo", "t2i", "i2t"] = "combo",
    *,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    revision: str | None = None,
    model_config: Mapping[str, Mapping[str, Any]] | None = None,
) -> BlipReward:
    """CycleReward: the network's own number, unbounded; compares images of one prompt.

    The shortest side is resized to 224 (antialiased bicubic) and the centre is cropped; prompts are
    cut after 126 word pieces, with a warning. Differentiable with respect to the images.

    Args:
        variant: Trained on text-to-image pairs (`"t2i"`), image-to-text pairs (`"i2t"`), or both.
        checkpoint: A local `.pth` or `.safetensors` with the published names; default the published
            file, from GitHub, kept in `HF_HOME/steer`.
        tokenizer: As for `imagereward`.
        device: Default: the accelerator if there is one.
        dtype: Precision of the two towers; default float32.
        batch: Most images scored at once.
        revision: Tag of the release; default `v1.0.0`.
        model_config: As for `imagereward`.

    Raises:
        ValueError: Unknown variant, an unknown part in `model_config`, or `batch` below 1.
        CheckpointError: Weights or a tokenizer that cannot be found, read, or do not fit.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: one of {', '.join(map(repr, VARIANTS))}")
    return open_blip(
        "cyclereward" if variant == "combo" else f"cyclereward:{variant}",
        GELU,
        SCALE,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        batch=batch,
        revision=revision,
        model_config=model_config,
    )


cyclereward_t2i = functools.partial(cyclereward, "t2i")
cyclereward_i2t = functools.partial(cyclereward, "i2t")
