"""A pipeline whose denoiser is the exact flow map of a Gaussian, on diffusers' own scheduler."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMapEulerDiscreteScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor, nn
from toy import Mixture, Toy


def spread(sigma: float, std: float) -> float:
    """The standard deviation of (1 - sigma) x0 + sigma noise, x0 of standard deviation `std`."""
    return float(((1 - sigma) ** 2 * std**2 + sigma**2) ** 0.5)


def flow(x: Tensor, here: float, there: float, mean: float, std: float) -> Tensor:
    """Where the flow of N(mean, std^2) takes x from one sigma to another.

    Along the flow of a Gaussian a point keeps its number of standard deviations from the mean.
    """
    away = (x - (1 - here) * mean) / spread(here, std)
    return (1 - there) * mean + spread(there, std) * away


class GaussianMap(nn.Module):
    """u(x, t -> r) = (X_{t, r}(x) - x) / (r - t) of N(mean, std^2); notes what was asked."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.asked: list[tuple[float, float]] = []

    def forward(self, hidden_states: Tensor, timestep: Tensor, r_timestep: Tensor) -> Tensor:
        """Rows of one t and one r, in thousandths."""
        (t,), (r,) = (set((time.double() / 1000).tolist()) for time in (timestep, r_timestep))
        self.asked.append((t, r))
        x = hidden_states.double()
        return ((flow(x, t, r, self.mean, self.std) - x) / (r - t)).to(hidden_states.dtype)


class MapToy(Toy):
    """`Toy` with a flow map, whose loop is AnyFlow's."""

    def __init__(self, mean: float = 0.7, std: float = 0.5, shift: float = 1.0) -> None:
        scheduler = FlowMapEulerDiscreteScheduler(shift=shift)
        super().__init__(Mixture([[mean]], [std]), scheduler, torch.float64)
        self.transformer = GaussianMap(mean, std)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] = "",
        num_inference_steps: int = 4,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "latent",
        return_dict: bool = True,
    ) -> Any:
        rows = len(self._which(prompt, num_images_per_prompt))
        x = self.prepare_latents(rows, self.latent_dtype, generator, latents)
        self.scheduler.set_timesteps(num_inference_steps)
        for i, t in enumerate(self.scheduler.timesteps):
            r = self.scheduler.sigmas[i + 1] * self.scheduler.config.num_train_timesteps
            u = self.transformer(
                hidden_states=x, timestep=t.expand(len(x)), r_timestep=r.expand(len(x))
            )
            x = self.scheduler.step(u, t, x, return_dict=False)[0]
        if output_type != "latent":
            image = self.vae.decode(x.double(), return_dict=False)[0]
            x = self.image_processor.postprocess(image, output_type=output_type)
        return ImagePipelineOutput(images=x) if return_dict else (x,)
