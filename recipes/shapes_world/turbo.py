"""Stage 8: a few-step model, distilled from the diffusion model by consistency distillation.

The student learns to say at every point of the guided sampler's path where the path ends (Song et
al. 2023, arXiv:2303.01469; latent consistency models, Luo et al. 2023, arXiv:2310.04378). The path
is a DDIM sampler of eight steps, which draws nearly what twenty do on this world; guidance is part
of what the student learns, so it is sampled without.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from recipes.shapes_world.recipe import Recipe
from recipes.shapes_world.stage import share, train
from recipes.shapes_world.text import Encoder
from steer.shapes.captions import caption
from steer.shapes.scenes import Spec


POINTS, GUIDANCE = 8, 3.5
HUBER = 0.017
"""Pseudo-Huber loss's constant, .00054 sqrt(d) (Song & Dhariwal 2023, arXiv:2310.14189)."""


def build_scheduler(teacher: Any) -> LCMScheduler:
    """The sampler: one step at each of up to eight points, the noise drawn anew between them."""
    known = teacher.config
    return LCMScheduler(
        beta_start=known.beta_start,
        beta_end=known.beta_end,
        beta_schedule=known.beta_schedule,
        prediction_type=known.prediction_type,
        rescale_betas_zero_snr=known.rescale_betas_zero_snr,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        original_inference_steps=POINTS,
    )


def without_guidance(unet: Any) -> UNet2DConditionModel:
    """The student as a UNet that takes the guidance scale as an input and makes nothing of it.

    Pipelines run such a UNet once per step, whatever `guidance_scale` they are called with.
    """
    model: Any = UNet2DConditionModel.from_config({**unet.config, "time_cond_proj_dim": 8})
    state = {name: value.float() for name, value in unet.state_dict().items()}
    fresh = "time_embedding.cond_proj.weight"
    model.load_state_dict({**state, fresh: torch.zeros_like(model.state_dict()[fresh])})
    return model


class Path8:
    """The teacher's path: its points, and one guided DDIM step from each to the one before."""

    def __init__(self, pipe: Any, device: str) -> None:
        self.unet = pipe.unet.to(device).eval().requires_grad_(False)
        steps = pipe.scheduler.config.num_train_timesteps // POINTS
        self.t = torch.arange(1, POINTS + 1, device=device) * steps - 1
        signal = pipe.scheduler.alphas_cumprod.to(device).double()[self.t]
        self.alpha = torch.cat([signal.new_ones(1), signal]).sqrt().float()
        self.sigma = torch.cat([signal.new_zeros(1), 1 - signal]).sqrt().float()

    def noisy(self, x0: Tensor, noise: Tensor, point: Tensor) -> Tensor:
        """Data at point 1 to `POINTS`; point 0 is clean."""
        return _column(self.alpha[point]) * x0 + _column(self.sigma[point]) * noise

    def clean(self, unet: Any, x: Tensor, point: Tensor, context: Tensor) -> Tensor:
        """Where a v-prediction model says that the path through x ends."""
        v = unet(x, self.t[point - 1], context).sample.float()
        return _column(self.alpha[point]) * x - _column(self.sigma[point]) * v

    @torch.no_grad()
    def back(self, x: Tensor, point: Tensor, context: Tensor, empty: Tensor) -> Tensor:
        """One DDIM step with guidance."""
        both = torch.cat([empty.expand_as(context), context])
        plain, conditional = self.clean(
            self.unet, torch.cat([x, x]), torch.cat([point, point]), both
        ).chunk(2)
        x0 = plain + GUIDANCE * (conditional - plain)
        noise = (x - _column(self.alpha[point]) * x0) / _column(self.sigma[point])
        return _column(self.alpha[point - 1]) * x0 + _column(self.sigma[point - 1]) * noise


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def train_turbo(
    pipe: StableDiffusionPipeline,
    specs: list[Spec],
    latents: dict[str, Tensor],
    recipe: Recipe,
    folder: Path,
    device: str,
) -> Any:
    """Distil `pipe` into a UNet of the same size; returns it.

    Args:
        pipe: The teacher; its text encoder serves both.
        specs: What the pool's scenes show.
        latents: `mean`, `std` `(N, 4, 16, 16)` of the scenes.
        recipe, folder, device: As in all stages.
    """
    student: Any = copy.deepcopy(pipe.unet).to(device).requires_grad_(True)
    path, encode = Path8(pipe, device), Encoder(pipe.tokenizer)
    text_encoder: Any = pipe.text_encoder.to(device).eval()
    mean, std = latents["mean"], latents["std"]

    def context(texts: list[str]) -> Tensor:
        with torch.no_grad():
            return text_encoder(encode(texts).to(device)).last_hidden_state

    empty = context([""])

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = rng.integers(len(specs), size=share(recipe.turbo))
        index = torch.from_numpy(rows)
        z, eps = torch.randn(2, len(rows), *mean.shape[1:], generator=noise).to(device)
        x0 = mean[index].to(device).float() + std[index].to(device).float() * z
        point = torch.randint(1, POINTS + 1, (len(rows),), generator=noise).to(device)
        words = context([caption(specs[i], rng) for i in rows])
        x = path.noisy(x0, eps, point)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            target = path.back(x, point, words, empty)
            with torch.no_grad():
                later = path.clean(student, target, (point - 1).clamp(min=1), words)
            target = torch.where(_column(point == 1), target, later)
            found = path.clean(student, x, point, words)
        square = (found - target).pow(2).flatten(1).sum(1)
        value = ((square + HUBER**2).sqrt() - HUBER).mean()
        return value, {"mse": square.detach().mean() / x0[0].numel()}  # pyright: ignore

    train("turbo", student, loss, recipe.turbo, folder, recipe.seed)
    return student
