"""Stage 3: UNet and text encoder, trained jointly with v-prediction and zero terminal SNR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from recipes.shapes_world.recipe import Recipe
from recipes.shapes_world.stage import share, train
from recipes.shapes_world.text import CONTEXT_LENGTH, END, START, Encoder
from steer.shapes.captions import caption
from steer.shapes.scenes import Spec


CFG_DROP = 0.1
TIMESTEP_POWER = 0.8
"""Timesteps are drawn as 1000 u^0.8: layout and shape are decided at high noise."""


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder: 3 layers of 128."""
    ids = tokenizer.get_vocab()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_act="gelu",
        bos_token_id=ids[START],
        eos_token_id=ids[END],
        pad_token_id=ids[END],
    )
    return CLIPTextModel(config)


def build_unet() -> UNet2DConditionModel:
    """The untrained denoiser on 4 x 16 x 16 latents."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """The noise schedule the denoiser is trained for, and the pipeline's default sampler."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


class Denoiser(nn.Module):
    """Text encoder and UNet as one module, so that one optimiser and one EMA serve both."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.unet = build_unet()

    def forward(self, latents: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        context = self.text_encoder(ids).last_hidden_state
        return self.unet(latents, t, context).sample


def train_denoiser(
    specs: list[Spec],
    latents: dict[str, Tensor],
    tokenizer: CLIPTokenizer,
    recipe: Recipe,
    folder: Path,
    device: str,
) -> Denoiser:
    """Train on the pool's latents `mean`, `std` (N, 4, 16, 16) with fresh paraphrases each step."""
    model = Denoiser(tokenizer).to(device)
    encode = Encoder(tokenizer)
    scheduler = build_scheduler()
    mean, std = latents["mean"].to(device), latents["std"].to(device)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = rng.integers(len(specs), size=share(recipe.denoiser))
        texts = ["" if rng.random() < CFG_DROP else caption(specs[i], rng) for i in rows]
        index = torch.from_numpy(rows).to(device)
        shape = (len(rows), *mean.shape[1:])
        z, eps = torch.randn(2, *shape, generator=noise).to(device)
        x0 = mean[index].float() + std[index].float() * z
        u = torch.rand(len(rows), generator=noise) ** TIMESTEP_POWER
        t = (u * 1000).long().clamp(0, 999).to(device)
        noisy = scheduler.add_noise(x0, eps, t)  # pyright: ignore[reportArgumentType]
        target = scheduler.get_velocity(x0, eps, t)  # pyright: ignore[reportArgumentType]
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            v = model(noisy, t, encode(texts).to(device))
        return ((v.float() - target) ** 2).mean(), {}

    train("denoiser", model, loss, recipe.denoiser, folder, recipe.seed)
    return model
