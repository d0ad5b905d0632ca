"""LAION's aesthetic predictors: a linear map of the CLIP image features to a rating.

v2 is "sac+logos+ava1-l14-linearMSE" (github.com/christophschuhmann/improved-aesthetic-predictor):
five linear layers without activations between them, hence one linear map, and folded into one here.
v1 (github.com/LAION-AI/aesthetic-predictor) is a single layer. Features are those of OpenAI's CLIP
(arXiv:2103.00020), L2-normalised. Neither looks at the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from steer.core.weights.hub import locate
from steer.core.weights.reading import fingerprint, load_into, load_state_dict
from steer.rewards.clip.encoder import Encoder
from steer.rewards.clip.fused import Fused
from steer.rewards.clip.preprocess import Preprocess, work_dtype
from steer.rewards.models.clip import FeatureReward, architecture, open_encoder


BACKBONES = {
    "vit_l_14": ("clip-vit-l-14", "ViT-L-14"),
    "vit_b_32": ("clip-vit-b-32", "ViT-B-32"),
    "vit_b_16": ("clip-vit-b-16", "ViT-B-16"),
}
"""Name in LAION's files: key of `steer.rewards.hub.FILES`, and open_clip's name."""


class AestheticReward(FeatureReward):
    """`<weight, f> + bias` with f the unit image features; differentiable, ignores prompts.

    `range` is exact: bias minus and plus the length of the weight.

    Args:
        name: Short name.
        encoder: The CLIP model whose image tower gives the features.
        weight: `(D,)` float64.
        bias: `()` float64.
        batch, fused: As for `FeatureReward`.
    """

    needs_prompt = False

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        weight: Tensor,
        bias: Tensor,
        *,
        batch: int | None = 32,
        fused: Fused = None,
    ) -> None:
        super().__init__(name, encoder, Preprocess(encoder.image_size), batch=batch, fused=fused)
        self.version += f"+{fingerprint({'weight': weight, 'bias': bias})}"
        self.range = (float(bias - weight.norm()), float(bias + weight.norm()))
        work = work_dtype(encoder.dtype)
        self.weight, self.bias = weight.to(self.device, work), bias.to(self.device, work)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.cosines(images, self.weight.expand(len(images), -1)) + self.bias


def aesthetic(
    *,
    checkpoint: str | Path | None = None,
    backbone: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    revision: str | None = None,
    model_config: dict[str, Any] | None = None,
    fused: Fused = None,
) -> AestheticReward:
    """LAION aesthetic predictor v2: a rating on a nominal scale of 1 to 10, prompts ignored.

    Args:
        checkpoint: A local head (3.7 MB; also "ava+logos-l14-linearMSE.pth" and copies of either);
            default the published one, from GitHub, kept in `HF_HOME/steer`.
        backbone: Local weights of OpenAI's CLIP ViT-L/14, in transformers' or open_clip's layout;
            default openai/clip-vit-large-patch14, through the Hugging Face cache.
        device: Default: the accelerator if there is one.
        dtype: Precision of the image tower; default float32. The head stays in float32.
        batch: Most images scored at once.
        revision: Commit, tag or branch of the head's repository; default the pinned commit.
        model_config: Another open_clip model config, for a backbone of another size.
        fused: As for `clip`.

    Raises:
        ValueError: `fused` where it cannot be.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """
    encoder = _encoder("vit_l_14", backbone, device, dtype, model_config)
    path = locate("aesthetic", checkpoint, revision=revision)
    weight, bias = fold(_load_head(path, _Mlp(_width(encoder))).layers)
    return AestheticReward("aesthetic", encoder, weight, bias, batch=batch, fused=fused)


def aesthetic_v1(
    model: Literal["vit_l_14", "vit_b_32", "vit_b_16"] = "vit_l_14",
    *,
    checkpoint: str | Path | None = None,
    backbone: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    revision: str | None = None,
    model_config: dict[str, Any] | None = None,
    fused: Fused = None,
) -> AestheticReward:
    """LAION aesthetic predictor v1: one linear layer on CLIP features; as `aesthetic`.

    Args:
        model: Which published head, and with it which of OpenAI's backbones.
        checkpoint: A local head (4 kB); default the published one, from GitHub.
        backbone: Local weights of that backbone; default openai's repository.
        device: As for `aesthetic`, and so are the others.

    Raises:
        ValueError: Unknown `model`.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """
    if model not in BACKBONES:
        raise ValueError(f"model={model!r}: one of {', '.join(map(repr, BACKBONES))}")
    encoder = _encoder(model, backbone, device, dtype, model_config)
    path = locate(f"aesthetic-v1-{model}", checkpoint, revision=revision)
    weight, bias = fold(_load_head(path, nn.Linear(_width(encoder), 1)))
    name = "aesthetic-v1" if model == "vit_l_14" else f"aesthetic-v1-{model}"
    return AestheticReward(name, encoder, weight, bias, batch=batch, fused=fused)


def fold(module: nn.Module) -> tuple[Tensor, Tensor]:
    """The one linear map that a chain of linear layers is, in float64: weight `(D,)`, bias `()`."""
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    weight, bias = linears[0].weight.double(), linears[0].bias.double()
    for part in linears[1:]:
        weight = part.weight.double() @ weight
        bias = part.weight.double() @ bias + part.bias.double()
    return weight.detach()[0], bias.detach()[0]


class _Mlp(nn.Module):
    """The head as published; dropout, which only trains, takes its places in the numbering."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )


def _load_head(path: str, head: Any) -> Any:
    load_into(head, load_state_dict(path), repr(path))
    return head


def _width(encoder: Encoder) -> int:
    return int(encoder.model.visual.output_dim)


def _encoder(
    model: str,
    backbone: str | Path | None,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    model_config: dict[str, Any] | None,
) -> Encoder:
    key, name = BACKBONES[model]
    weights = locate(key, backbone, option="backbone")
    config = model_config or {**architecture(name), "quick_gelu": True}
    return open_encoder(config, weights, device, dtype)
