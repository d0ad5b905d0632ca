"""HPS v2 and v2.1: a ViT-H/14 CLIP fine-tuned on human choices between generated images.

Wu et al. 2023 (arXiv:2306.09341); preprocessing and score as the reference implementation
(github.com/tgxs002/HPSv2, commit 866735e). Scores compare images of the same prompt; those of v2.0
and v2.1 are not on one scale.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import torch

from steer.core.weights.hub import locate
from steer.rewards.clip.fused import Fused
from steer.rewards.clip.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from steer.rewards.models.clip import ClipReward, architecture, open_encoder


VERSIONS = ("2.0", "2.1")
ARCHITECTURE = "ViT-H-14"


def hpsv2(
    version: Literal["2.0", "2.1"] = "2.1",
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    legacy_resize: bool = False,
    revision: str | None = None,
    model_config: dict[str, Any] | None = None,
    fused: Fused = None,
) -> ClipReward:
    """HPS v2 score: the cosine in [-1, 1], typically 0.20 to 0.33 (published tables show it x 100).

    The longest side is resized to the model's size (antialiased bicubic, no clamp), the rest padded
    with black before normalisation, so nothing of a wide image is lost.

    Args:
        version: "2.1" or "2.0".
        checkpoint: A local `.pt` (tensors under `state_dict`) or `.safetensors`; default the
            published file, through the Hugging Face cache.
        device: Default: the accelerator if there is one.
        dtype: Precision of the weights; default float32. float16 may overflow on near-noise images.
        batch: Most images scored at once.
        legacy_resize: Resize without antialiasing, as the original does on torchvision before 0.17.
            Another scale: the reward is then called `"hpsv2.1-legacy"`.
        revision: Commit, tag or branch of the weights repository; default the pinned commit.
        model_config: Another open_clip model config, for weights of another size.
        fused: As for `clip`.

    Raises:
        ValueError: Unknown version, or `fused` where it cannot be.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """
    if version not in VERSIONS:
        raise ValueError(f"version={version!r}: one of {', '.join(map(repr, VERSIONS))}")
    name = f"hpsv{version}"
    config = model_config or architecture(ARCHITECTURE)
    weights = locate(name, checkpoint, revision=revision)
    encoder = open_encoder(config, weights, device, dtype)
    preprocess = hpsv2_preprocess(encoder.image_size, antialias=not legacy_resize)
    name += "-legacy" if legacy_resize else ""
    return ClipReward(name, encoder, preprocess, batch=batch, fused=fused)


hpsv2_0 = functools.partial(hpsv2, "2.0")
hpsv2_1 = functools.partial(hpsv2, "2.1")


def hpsv2_preprocess(size: tuple[int, int] = (224, 224), *, antialias: bool = True) -> Preprocess:
    """The published preprocessing, applied to every image (the original skips the padding of
    non-square images whose longest side already is 224, and then fails on them)."""
    return Preprocess(
        size=size,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        resize="longest",
        fill=0.0,
        antialias=antialias,
        clamp=False,
    )
