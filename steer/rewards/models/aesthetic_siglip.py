"""Aesthetic Predictor V2.5: a linear map of SigLIP's image features to a rating.

github.com/discus0434/aesthetic-predictor-v2-5 (commit c0e1556): five linear layers without
activations, hence one linear map, on the L2-normalised pooled output of SigLIP so400m (Zhai et al.
2023, arXiv:2303.15343). It does not look at the prompt.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from steer.core.errors import CheckpointError, first_line
from steer.core.weights.hub import locate
from steer.core.weights.reading import fingerprint, load_into, load_state_dict, stamp
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.clip.preprocess import Preprocess, work_dtype
from steer.rewards.families import FAMILIES
from steer.rewards.models.aesthetic import fold
from steer.rewards.models.clip import default_device


NAME = "aesthetic-v2.5"
VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
HALF = (0.5, 0.5, 0.5)
_PREFIX = "vision_model."


class SiglipAesthetic(BaseReward):
    """`<weight, f> + bias` with f the unit pooled features; differentiable, ignores prompts.

    `range` is exact: bias minus and plus the length of the weight.

    Args:
        tower: SigLIP's image tower, with its weights.
        weight: `(D,)` float64.
        bias: `()` float64.
        device: Where it computes.
        dtype: Precision of the tower; the rest is in float32 or better.
        batch: Most images scored at once.
    """

    name = NAME
    family = FAMILIES[NAME]
    differentiable = True
    needs_prompt = False

    def __init__(
        self,
        tower: nn.Module,
        weight: Tensor,
        bias: Tensor,
        device: torch.device,
        dtype: torch.dtype,
        *,
        batch: int | None = 32,
    ) -> None:
        self.tower = tower
        head = fingerprint({"weight": weight, "bias": bias})
        self.version = f"{fingerprint(tower)}+{head}"
        self.range = (float(bias - weight.norm()), float(bias + weight.norm()))
        self.device, self.dtype, self.work = device, dtype, work_dtype(dtype)
        self.weight, self.bias = weight.to(device, self.work), bias.to(device, self.work)
        self.batch = check_batch(batch)
        side: int = _config_of(tower).image_size
        self.preprocess = Preprocess(size=(side, side), mean=HALF, std=HALF, resize="squash")

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels = self.preprocess(images.to(self.work)).to(self.dtype)
        features = self.tower(pixels).pooler_output.to(self.work)
        return F.normalize(features, dim=-1) @ self.weight + self.bias


def aesthetic_siglip(
    *,
    checkpoint: str | Path | None = None,
    backbone: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    revision: str | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> SiglipAesthetic:
    """Aesthetic Predictor V2.5: a rating on a nominal scale of 1 to 10, prompts ignored.

    Its author calls 5.5 and more great. Images are resized to 384 x 384, whatever their shape
    (antialiased bicubic).

    Args:
        checkpoint: A local head (2.6 MB); default the published one, from GitHub, kept in
            `HF_HOME/steer`.
        backbone: Local `.safetensors` or `.bin` of google/siglip-so400m-patch14-384; default the
            published file, through the Hugging Face cache. Its text tower is not used.
        device: Default: the accelerator if there is one.
        dtype: Precision of the image tower; default float32. The head stays in float32.
        batch: Most images scored at once.
        revision: Commit, tag or branch of the head's repository; default the pinned commit.
        model_config: For a backbone of another size: what differs, in the names of
            `SiglipVisionConfig`.

    Raises:
        ValueError: `batch` below 1.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """
    weights = locate("siglip-so400m-384", backbone, option="backbone")
    config = json.dumps(dict(model_config or {}), sort_keys=True)
    place, precision = default_device(device), dtype or torch.float32
    tower = load_tower(weights, stamp(weights), config, place, precision)
    path = locate(NAME, checkpoint, revision=revision)
    head = _Head(_config_of(tower).hidden_size)
    load_into(head, load_state_dict(path), repr(path))
    return SiglipAesthetic(tower, *fold(head), place, precision, batch=batch)


@functools.lru_cache(maxsize=4)
def load_tower(
    path: str, _stamp: tuple[int, int], config: str, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """SigLIP's image tower, frozen; once per process for equal arguments.

    Args:
        path: A checkpoint of the whole model, or of the tower alone, in transformers' names.
        _stamp: Of that file, so that a rewritten one is loaded again.
        config: What differs from the published vision config, as JSON.
        device: Where it goes.
        dtype: Its precision.

    Raises:
        CheckpointError: Weights that cannot be read, or do not fit.
    """
    with torch.inference_mode(False):
        state = load_state_dict(path)
        seen = {n.removeprefix(_PREFIX): v for n, v in state.items() if n.startswith(_PREFIX)}
        tower = _empty_tower(config, path)
        load_into(tower, seen, repr(path), assign=True)
        positions = torch.arange(tower.embeddings.num_positions)[None]
        tower.embeddings.register_buffer("position_ids", positions, persistent=False)
        return tower.eval().requires_grad_(False).to(device, dtype)


def _empty_tower(config: str, path: str) -> Any:
    try:
        with torch.device("meta"):  # nothing is initialised only to be overwritten
            model = SiglipVisionModel(SiglipVisionConfig(**{**VISION, **json.loads(config)}))
    except Exception as error:  # whatever odd values make transformers' own code raise
        raise CheckpointError(
            f"no model can be built from model_config={config} for {path!r} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    return getattr(model, "vision_model", model)  # the tower itself, in transformers 4


def _config_of(tower: nn.Module) -> Any:
    return tower.config


class _Head(nn.Module):
    """The head as published; dropout, which only trains, takes its places in the numbering."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scoring_head = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.5),
            nn.Linear(1024, 128),
            nn.Dropout(0.5),
            nn.Linear(128, 64),
            nn.Dropout(0.5),
            nn.Linear(64, 16),
            nn.Dropout(0.2),
            nn.Linear(16, 1),
        )
