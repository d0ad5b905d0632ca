"""PickScore v1: a ViT-H/14 CLIP fine-tuned on users' choices in the Pick-a-Pic web application.

Kirstain et al. 2023 (arXiv:2305.01569); score and preprocessing as in the model card of
yuvalkirstain/PickScore_v1 (processor of laion/CLIP-ViT-H-14-laion2B-s32B-b79K).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from steer.core.weights.hub import locate
from steer.rewards.clip.fused import Fused
from steer.rewards.clip.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess
from steer.rewards.models.clip import ClipReward, architecture, open_encoder


ARCHITECTURE = "ViT-H-14"


def pickscore(
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    revision: str | None = None,
    model_config: dict[str, Any] | None = None,
    fused: Fused = None,
) -> ClipReward:
    """PickScore: `exp(logit_scale) * cosine`, in float32; typically 18 to 24 (arXiv:2305.01569).

    Some training codes use the cosine alone, about 1/100 of this. The weights are in transformers'
    layout and run on open_clip's towers; text is tokenised by open_clip's CLIP tokenizer, whose ids
    are those of the published processor (except that HTML entities are unescaped first).

    Args:
        checkpoint: A local `.safetensors`, `.bin` or `.pt`, in transformers' or open_clip's layout;
            default the published file, through the Hugging Face cache.
        device: Default: the accelerator if there is one.
        dtype: Precision of the weights; default float32. The logit scale keeps the file's.
        batch: Most images scored at once.
        revision: Commit, tag or branch of the weights repository; default the pinned commit.
        model_config: Another open_clip model config, for weights of another size.
        fused: As for `clip`.

    Raises:
        ValueError: `fused` where it cannot be.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """
    config = model_config or architecture(ARCHITECTURE)
    weights = locate("pickscore", checkpoint, revision=revision)
    encoder = open_encoder(config, weights, device, dtype)
    preprocess = pickscore_preprocess(encoder.image_size)
    return ClipReward(
        "pickscore", encoder, preprocess, batch=batch, scale=encoder.scale, fused=fused
    )


def pickscore_preprocess(size: tuple[int, int] = (224, 224)) -> Preprocess:
    """As transformers' `CLIPImageProcessor`: shortest side to size, bicubic, centre crop."""
    return Preprocess(size=size, mean=OPENAI_MEAN, std=OPENAI_STD, resize="shortest", crop="floor")
