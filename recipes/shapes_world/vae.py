"""Stage 1: a genuine AutoencoderKL, factor 4, four latent channels of unit variance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from recipes.shapes_world.data import Pool
from recipes.shapes_world.recipe import Recipe
from recipes.shapes_world.stage import share, train


KL_WEIGHT = 1e-4
LATENT_NOISE = 0.2
"""Noise on the latents that the decoder sees, relative to each channel's spread: it bounds what a
channel can carry, so all of them are used (a stronger KL term instead collapsed three of four), and
the decoder learns to draw crisp shapes from the slightly wrong latents that a denoiser makes."""


CONFIG: dict[str, Any] = {
    "sample_size": 64,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
}


def build() -> AutoencoderKL:
    """The untrained autoencoder."""
    return AutoencoderKL(**CONFIG)


def train_vae(pool: Pool, recipe: Recipe, folder: Path, device: str) -> AutoencoderKL:
    """Train it on renders with L1 + MSE, coloured pixels weighted 6x, and a KL term."""
    vae: Any = build()
    vae.to(device)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = rng.integers(len(pool.specs), size=share(recipe.vae))
        x = pool.batch(rows, device) * 2 - 1
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            extra = LATENT_NOISE * mean.detach().std((0, 2, 3), keepdim=True)
            eps = torch.randn(mean.shape, generator=noise).to(device)
            z = mean + torch.sqrt(std**2 + extra**2) * eps
            y = vae.decode(z).sample.float()
        chroma = x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
        weight = 1 + 5 * (chroma > 0.3)
        pixel = (weight * ((y - x).abs() + (y - x) ** 2)).mean()
        kl = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).mean()
        mse = F.mse_loss(y.clamp(-1, 1), x).item() / 4
        metrics = {"psnr": round(-10 * float(np.log10(mse)), 2), "kl": round(kl.item(), 3)}
        return pixel + KL_WEIGHT * kl, metrics

    train("vae", vae, loss, recipe.vae, folder, recipe.seed)
    return vae


@torch.no_grad()
def normalise(vae: Any, pool: Pool, device: str, count: int = 2048) -> None:
    """Fold the latents' per-channel mean and std into the quant convolutions, in place.

    Afterwards latents have zero mean and unit variance per channel, so `scaling_factor` is 1.
    """
    latents = torch.cat(
        [
            vae.encode(pool.batch(np.arange(i, i + 64), device) * 2 - 1).latent_dist.mean
            for i in range(0, min(count, len(pool.specs) - 64), 64)
        ]
    )
    mean = latents.mean((0, 2, 3))
    std = latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = mean.numel()
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()  # the log-variance half
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]


@torch.no_grad()
def encode_pool(vae: Any, pool: Pool, device: str) -> tuple[Tensor, Tensor]:
    """Posterior mean and std of every scene, `(N, 4, 16, 16)` float16 each, on the CPU."""
    means, stds = [], []
    for i in range(0, len(pool.specs), 128):
        rows = np.arange(i, min(i + 128, len(pool.specs)))
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            d = vae.encode(pool.batch(rows, device) * 2 - 1).latent_dist
        means.append(d.mean.half().cpu())
        stds.append(d.std.half().cpu())
    return torch.cat(means), torch.cat(stds)
