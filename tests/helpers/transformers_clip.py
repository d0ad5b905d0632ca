"""Small random checkpoints in transformers' CLIP layout, and transformers' own answers to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hps_reference import MEAN, STD, resize_matrix
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel


def transformers_config(config: dict[str, Any]) -> CLIPConfig:
    """The `CLIPConfig` of an open_clip config."""
    text, vision, width = config["text_cfg"], config["vision_cfg"], config["embed_dim"]
    act = "quick_gelu" if config.get("quick_gelu") else "gelu"
    return CLIPConfig(
        projection_dim=width,
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "hidden_act": act,
            "projection_dim": width,
        },
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": act,
            "projection_dim": width,
        },
    )


def random_transformers_clip(config: dict[str, Any], seed: int = 0) -> CLIPModel:
    torch.manual_seed(seed)
    model = CLIPModel(transformers_config(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def unit(output: Any) -> Tensor:
    """Unit features: transformers 5 returns an object, 4 a tensor."""
    return normalize(getattr(output, "pooler_output", output), dim=-1)


def shortest_side_preprocess(image: np.ndarray, size: int = 224, *, floor: bool) -> np.ndarray:
    """`(H, W, 3)` in [0, 1] to `(3, size, size)`: shortest side, clip, centre crop, normalise."""
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    length = int(size * long / short)
    rows, columns = (size, length) if height <= width else (length, size)
    image = np.einsum("ih,hwc->iwc", resize_matrix(height, rows), image)
    image = np.einsum("jw,iwc->ijc", resize_matrix(width, columns), image).clip(0, 1)
    top, left = (x // 2 if floor else round(x / 2) for x in (rows - size, columns - size))
    image = image[top : top + size, left : left + size]
    return ((image - MEAN) / STD).transpose(2, 0, 1)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """`(H, W, 3)` in [0, 1], sharp enough for a shift of one pixel to show."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.add.outer(np.arange(height), 2 * np.arange(width)) / 9)[..., None] / 4 + 0.5
    return np.clip(wave + rng.normal(0, 0.3, (height, width, 3)), 0, 1)


def tensor(image: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].to(dtype)


def finite_difference_error(score: Any, image: Tensor, seeds: int = 3) -> float:
    """Largest relative error of the gradient of `score(image).sum()` along random directions."""
    image = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(image).sum(), image)
    worst = 0.0
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(image.shape, generator=generator, dtype=image.dtype)
        with torch.no_grad():
            rise = score(image + 1e-5 * direction) - score(image - 1e-5 * direction)
        expected = rise.sum().item() / 2e-5
        worst = max(worst, abs((gradient * direction).sum().item() / expected - 1))
    return worst
