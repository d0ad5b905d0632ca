"""Stage 6: a tiny decoder that imitates the autoencoder's, for x0 previews.

An `AutoencoderTiny` (the layout of TAESD) learns what the autoencoder makes of the latents that the
sampler meets: the x0 predictions of every step. Its encoder is as small as the class allows, and
untrained: nothing asks it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from recipes.shapes_world.recipe import Recipe
from recipes.shapes_world.stage import share, train
from steer.shapes.captions import caption
from steer.shapes.scenes import sample_spec


BATCH, STEPS, GUIDANCE = 16, 20, 3.5

CONFIG: dict[str, Any] = {
    "encoder_block_out_channels": (4, 4, 4),
    "num_encoder_blocks": (1, 1, 1),
    "decoder_block_out_channels": (16, 16, 16),
    "num_decoder_blocks": (4, 2, 0),
}
"""Blocks stand where they are cheap: at 64x64 there are two convolutions and no block."""


class Watched(DDIMScheduler):
    """A DDIMScheduler that keeps the x0 predictions of every step."""

    seen: list[Tensor]

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """The step, with its x0 noted."""
        moved: Any = super().step(*args, **{**kwargs, "return_dict": True})
        self.seen.append(moved.pred_original_sample)
        return moved if kwargs.get("return_dict", True) else (moved.prev_sample,)


@torch.no_grad()
def previews(pipe: Any, captions: int, seed: int) -> tuple[Tensor, Tensor]:
    """x0 predictions of all steps of one sample per training caption, and what the VAE shows.

    Returns:
        Latents `(captions * STEPS, 4, 16, 16)` and images `(..., 3, 64, 64)` in [-1, 1], float16.
    """
    scheduler: Any = Watched.from_config(pipe.scheduler.config)
    pipe.scheduler, scheduler.seen = scheduler, []
    pipe.set_progress_bar_config(disable=True)
    rng, noise = np.random.default_rng([seed, 53]), torch.Generator().manual_seed(seed)
    texts = [caption(sample_spec(rng, "train"), rng) for _ in range(captions)]
    images: list[Tensor] = []
    for first in tqdm(range(0, captions, BATCH), desc="previews"):
        pipe(
            texts[first : first + BATCH],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=noise,
            output_type="latent",
        )
        for x0 in scheduler.seen[len(images) :]:
            images.append(pipe.vae.decode(x0).sample.clamp(-1, 1).half().cpu())
    return torch.cat(scheduler.seen).half().cpu(), torch.cat(images)


def train_tiny(pipe: StableDiffusionPipeline, recipe: Recipe, folder: Path) -> Any:
    """Train it with L1 + MSE to the autoencoder's images, coloured pixels weighted 6x."""
    device = pipe.device
    latents, images = previews(pipe, recipe.tiny_captions, recipe.seed)
    tiny: Any = AutoencoderTiny(**CONFIG)
    tiny.to(device, memory_format=torch.channels_last)  # nearly twice as fast on a CPU
    tiny.encoder.requires_grad_(False)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.from_numpy(rng.integers(len(latents), size=share(recipe.tiny)))
        x = images[rows].to(device).float()
        z = latents[rows].to(device).float().contiguous(memory_format=torch.channels_last)
        y = tiny.decode(z).sample
        chroma = x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
        weight = 1 + 5 * (chroma > 0.3)
        pixel = (weight * ((y - x).abs() + (y - x) ** 2)).mean()
        mse = F.mse_loss(y.clamp(-1, 1), x).item() / 4
        return pixel, {"psnr": round(-10 * float(np.log10(mse)), 2)}

    train("tiny", tiny, loss, recipe.tiny, folder, recipe.seed)
    return tiny
