"""HPS v2 and v2.1: a ViT-H/14 CLIP fine-tuned on human choices between generated images.

Wu et al. 2023 (arXiv:2306.09341); preprocessing and score as the reference implementation
(github.com/tgxs002/HPSv2, commit 866735e). Scores compare images of the same prompt; those of v2.0
and v2.1 are not on one scale.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_CACHE

from steer.errors import CheckpointError
from steer.rewards.clip import ClipReward, default_device
from steer.rewards.encoder import Source, load_encoder
from steer.rewards.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess


REPOSITORY = "xswu/HPSv2"
FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
ARCHITECTURE = "ViT-H-14"


def hpsv2(
    version: Literal["2.0", "2.1"] = "2.1",
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    revision: str | None = None,
    model_config: dict[str, Any] | None = None,
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
        revision: Commit, tag or branch of the weights repository; default its main branch.
        model_config: Another open_clip model config, for weights of another size.

    Raises:
        ValueError: Unknown version.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """
    if version not in FILES:
        raise ValueError(f"version={version!r}: one of {', '.join(map(repr, FILES))}")
    config = model_config or open_clip.get_model_config(ARCHITECTURE)
    weights = Path(checkpoint or _download(version, revision)).expanduser()
    if not weights.is_file():
        raise CheckpointError(f"checkpoint={str(checkpoint)!r} does not exist: {_way_out(version)}")
    source = Source.of(config or {}, str(weights))
    encoder = load_encoder(source, default_device(device), dtype or torch.float32)
    preprocess = hpsv2_preprocess(encoder.image_size)
    return ClipReward(f"hpsv2.{version[-1]}", encoder, preprocess, batch=batch)


hpsv2_0 = functools.partial(hpsv2, "2.0")
hpsv2_1 = functools.partial(hpsv2, "2.1")


def hpsv2_preprocess(size: tuple[int, int] = (224, 224)) -> Preprocess:
    """The published preprocessing, applied to every image (the original skips the padding of
    non-square images whose longest side already is 224, and then fails on them)."""
    return Preprocess(
        size=size, mean=OPENAI_MEAN, std=OPENAI_STD, resize="longest", fill=0.0, clamp=False
    )


def _download(version: str, revision: str | None) -> str:
    try:
        return hf_hub_download(REPOSITORY, FILES[version], revision=revision)
    except Exception as error:  # the hub's client raises many kinds
        raise CheckpointError(
            f"hpsv2.{version[-1]}: its weights are not in the cache and cannot be downloaded "
            f"({type(error).__name__}): {_way_out(version)}"
        ) from error


def _way_out(version: str) -> str:
    return (
        f"where there is a network, run `hf download {REPOSITORY} {FILES[version]}` "
        f"(https://huggingface.co/{REPOSITORY}, 1.84 GiB), then pass checkpoint='.../"
        f"{FILES[version]}', or copy the cache folder to {HF_HUB_CACHE} on this machine"
    )
