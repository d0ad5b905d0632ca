"""A diffusers pipeline whose denoiser is exact: Gaussian mixtures, for tests against closed forms.

    mixture = Mixture([[-2.0], [1.0]], [0.5, 0.4], [0.3, 0.7])       # two components in 1-D
    pipe = Toy(mixture, scheduler="ddim")                            # a real diffusers scheduler
    out = guided(pipe, on_points(lambda x: x[:, 0]), method=...)("", num_inference_steps=20)
    out.images.flatten(1)                                            # (B, dim) data points

- Data are points `(dim,)`; latents are `(B, dim, 1, 1)`. The stand-in VAE shows the first three
  coordinates as the channels of a one-pixel image: the value x in (-SPAN, SPAN) is the brightness
  (x / SPAN + 1) / 2, so images are exact up to float32. `on_points(f)` makes a (differentiable)
  reward for `steer.guided` from `f: (B, dim <= 3) -> (B,)`; `points(images)` inverts.
- `Toy(mixture, scheduler, dtype)`: `scheduler` is a name in `SCHEDULERS` or any diffusers
  scheduler of kind epsilon, v_prediction, sample or flow. With a dict of mixtures every prompt has
  its own: `Toy({"left": ..., "right": ...})(["left", "right"])`. Everything a text-to-image
  pipeline takes is there: `num_inference_steps`, `num_images_per_prompt`, `generator` (one or a
  list), `latents`, `eta`, `output_type` ("latent" by default, or "pt").
- The denoiser answers with the posterior mean in the scheduler's own parametrisation, in float64.
  `pipe.denoiser.calls` and `.rows` count independently of steer's ledger, `pipe.vae.decodes` too.
- `run(pipe, search, n, reward, ...)` drives any generator function of `(ctx, start)`, such as a
  method, through the real engine and returns all that it returned, with the call's report.
- `Mixture`: `sample`, `log_prob`, `posterior_mean`, `tilted(reward)` (numeric law in 1-D with
  `cdf`, `log_evidence`); `gaussian_chain` is the exact law of the *discretised* sampler for one
  Gaussian, so that tests need no tolerance for the grid.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from scipy.integrate import trapezoid
from torch import Tensor, nn

from steer.core.types import Population
from steer.driver.grid import Schedule, prediction_of
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward
from steer.search.method import Method


SPAN = 16.0
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: diffusers.DDIMScheduler(**BETAS, clip_sample=False),
    "ddpm": lambda: diffusers.DDPMScheduler(**BETAS, clip_sample=False),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**BETAS),
    "euler_a": lambda: diffusers.EulerAncestralDiscreteScheduler(**BETAS),
    "dpm++2m": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS),
    "sde-dpm++": lambda: diffusers.DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="sde-dpmsolver++"
    ),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**BETAS),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
}


class Mixture:
    """An isotropic Gaussian mixture: `means (K, dim)`, `stds (K,)`, `weights (K,)`; float64."""

    def __init__(
        self,
        means: Sequence[Sequence[float]],
        stds: Sequence[float],
        weights: Sequence[float] | None = None,
    ) -> None:
        self.means = torch.tensor(means, dtype=torch.float64)
        self.stds = torch.tensor(stds, dtype=torch.float64)
        given = [1.0] * len(stds) if weights is None else weights
        self.weights = torch.tensor(given, dtype=torch.float64)
        self.weights = self.weights / self.weights.sum()
        self.dim = self.means.shape[1]

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Exact draws, `(count, dim)`."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.dim, generator=generator, dtype=torch.float64)
        return self.means[which] + self.stds[which, None] * noise

    def _parts(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Residual `(B, K, dim)`, variance `(B, K)`, joint log density `(B, K)` of noisy data."""
        variance = alpha[:, None] ** 2 * self.stds**2 + sigma[:, None] ** 2
        residual = x[:, None] - alpha[:, None, None] * self.means
        logs = -0.5 * (residual**2).sum(2) / variance - 0.5 * self.dim * (
            variance.log() + math.log(math.tau)
        )
        return residual, variance, logs + self.weights.log()

    def log_prob(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """Log density of `alpha * x0 + sigma * noise`, `(B,)`."""
        one = x.new_ones(len(x), dtype=torch.float64)
        return self._parts(x.double(), alpha * one, sigma * one)[2].logsumexp(1)

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x] at `x = alpha * x0 + sigma * noise`, `(B, dim)`; alpha, sigma `(B,)`."""
        residual, variance, logs = self._parts(x.double(), alpha, sigma)
        gain = (alpha[:, None] * self.stds**2 / variance)[:, :, None]
        return (logs.softmax(1)[:, :, None] * (self.means + gain * residual)).sum(1)

    def tilted(self, reward: Callable[[Tensor], Tensor]) -> Tilted:
        """The 1-D density proportional to p(x) exp(reward(x)), by quadrature."""
        grid = torch.linspace(-SPAN, SPAN, 40_001, dtype=torch.float64)
        logs = self.log_prob(grid[:, None]) + reward(grid[:, None]).double()
        return Tilted(grid.numpy(), logs.numpy())


@dataclass(frozen=True)
class Tilted:
    """A 1-D law on a grid, from unnormalised log densities."""

    grid: np.ndarray
    logs: np.ndarray

    @property
    def log_evidence(self) -> float:
        """Log of the integral."""
        top = self.logs.max()
        return float(top + np.log(trapezoid(np.exp(self.logs - top), self.grid)))

    def cdf(self, x: Any) -> np.ndarray:
        """P(X <= x)."""
        density = np.exp(self.logs - self.log_evidence)
        steps = (density[1:] + density[:-1]) / 2 * np.diff(self.grid)
        return np.interp(np.asarray(x), self.grid, np.concatenate([[0.0], np.cumsum(steps)]))


class Denoiser(nn.Module):
    """The posterior mean as epsilon, v, sample or flow velocity, per row; counts its work."""

    def __init__(self, mixtures: Sequence[Mixture]) -> None:
        super().__init__()
        self.mixtures = list(mixtures)
        self.register_buffer("anchor", torch.zeros(1))
        self.calls = self.rows = 0

    def coefficients(self, t: Tensor, scheduler: Any) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at timesteps `(B,)`: the training grid, or t / 1000 for flow models."""
        if prediction_of(scheduler) == "flow":
            sigma = t.double() / scheduler.config.num_train_timesteps
            return 1 - sigma, sigma
        bar = scheduler.alphas_cumprod.double().numpy()
        levels = np.interp(t.double().numpy(), np.arange(len(bar)), ((1 - bar) / bar) ** 0.5)
        ratio = torch.from_numpy(levels)
        alpha = 1 / (1 + ratio**2).sqrt()
        return alpha, ratio * alpha

    def forward(self, x: Tensor, t: Tensor, which: Tensor, scheduler: Any) -> Tensor:
        """`(B, dim, 1, 1)` latents, one timestep, `(B,)` mixture numbers; same shape back."""
        self.calls += 1
        self.rows += len(x)
        alpha, sigma = self.coefficients(t.reshape(1).expand(len(x)), scheduler)
        flat = x.double().flatten(1)
        x0 = torch.zeros_like(flat)
        for number, mixture in enumerate(self.mixtures):
            mean = mixture.posterior_mean(flat, alpha, sigma)
            x0 = torch.where((which == number)[:, None], mean, x0)
        noise = (flat - alpha[:, None] * x0) / sigma[:, None]
        answers = {
            "sample": x0,
            "epsilon": noise,
            "v_prediction": alpha[:, None] * noise - sigma[:, None] * x0,
            "flow": noise - x0,
        }
        return answers[prediction_of(scheduler)].to(x.dtype).reshape(x.shape)


class Window(nn.Module):
    """A stand-in VAE: the first three coordinates of a point as the colour of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchor", torch.zeros(1))
        self.config = SimpleNamespace(scaling_factor=1.0)
        self.dtype, self.device = torch.float64, torch.device("cpu")
        self.decodes = 0

    def decode(self, z: Tensor, return_dict: bool = True) -> Any:
        self.decodes += len(z)
        colour = z[:, :3] / SPAN
        image = torch.cat([colour, colour.new_zeros(len(z), 3 - colour.shape[1], 1, 1)], 1)
        return SimpleNamespace(sample=image) if return_dict else (image,)


class Toy(DiffusionPipeline):
    """A text-to-image pipeline in everything but its denoiser, see the top of this file."""

    def __init__(
        self,
        mixture: Mixture | dict[str, Mixture],
        scheduler: Any = "ddim",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        mixtures = mixture if isinstance(mixture, dict) else {"": mixture}
        made = SCHEDULERS[scheduler]() if isinstance(scheduler, str) else scheduler
        self.register_modules(scheduler=made)
        self.names, self.latent_dtype = list(mixtures), dtype
        self.dim = next(iter(mixtures.values())).dim
        self.denoiser, self.vae = Denoiser(list(mixtures.values())), Window()
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self.set_progress_bar_config(disable=True)

    @property
    def _execution_device(self) -> torch.device:
        return torch.device("cpu")

    def prepare_latents(
        self, batch_size: int, dtype: torch.dtype, generator: Any, latents: Tensor | None = None
    ) -> Tensor:
        if latents is None:
            latents = randn_tensor((batch_size, self.dim, 1, 1), generator, dtype=dtype)
        return latents * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _which(self, prompt: str | list[str], images: int) -> Tensor:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        numbers = [self.names.index(p) if len(self.names) > 1 else 0 for p in prompts]
        return torch.tensor(numbers).repeat_interleave(images)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] = "",
        num_inference_steps: int = 20,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        latents: Tensor | None = None,
        eta: float = 0.0,
        output_type: str = "latent",
        return_dict: bool = True,
    ) -> Any:
        which = self._which(prompt, num_images_per_prompt)
        self.scheduler.set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps
        x = self.prepare_latents(len(which), self.latent_dtype, generator, latents)
        given = {"eta": eta, "generator": generator}
        accepted = inspect.signature(self.scheduler.step).parameters
        extra = {name: value for name, value in given.items() if name in accepted}
        with self.progress_bar(total=num_inference_steps) as bar:
            for t in timesteps:
                scaled = x
                if hasattr(self.scheduler, "scale_model_input"):
                    scaled = self.scheduler.scale_model_input(x, t)
                output = self.denoiser(scaled, t, which, self.scheduler)
                x = self.scheduler.step(output, t, x, **extra, return_dict=False)[0]
                bar.update()
        if output_type != "latent":
            image = self.vae.decode(x.double(), return_dict=False)[0]
            x = self.image_processor.postprocess(image, output_type=output_type)
        return ImagePipelineOutput(images=x) if return_dict else (x,)


def points(images: Tensor, dim: int = 1) -> Tensor:
    """Data points `(B, dim)` of images `(B, 3, 1, 1)` in [0, 1]."""
    return (images[:, :dim, 0, 0] * 2 - 1) * SPAN


def on_points(function: Callable[[Tensor], Tensor], dim: int = 1) -> FunctionReward:
    """A differentiable reward from a function of data points, `(B, dim) -> (B,)`."""

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return function(points(images, dim))

    return FunctionReward(reward, name="points", differentiable=True, needs_prompt=False)


@dataclass(frozen=True)
class _Whole(Method):
    """A method that keeps what a search returned, and hands the pipeline its first rows."""

    search: Callable[..., Any]
    n: int
    found: list[Any]

    def cost(self, steps: int) -> int:
        return self.n * steps

    def __call__(self, ctx: Any, start: Population) -> Any:
        result = yield from self.search(ctx, start)
        self.found.append(result)
        ids = [(p, k) for p in start.prompts for k in range(ctx.images)]
        return start.take([start.ids.index(name) for name in ids])


def run(
    pipe: Toy,
    search: Callable[..., Any],
    n: int,
    reward: Any,
    *,
    prompt: str | list[str] = "",
    steps: int = 20,
    seed: int = 0,
    width: int | None = None,
    **call: Any,
) -> tuple[Any, Any]:
    """What `search(ctx, start)` returns for `n` particles per prompt, and the call's report."""
    found: list[Any] = []
    steered = guided(pipe, reward, method=_Whole(search, n, found), lane_width=width or n)
    generator = torch.Generator().manual_seed(seed)
    out = steered(prompt, num_inference_steps=steps, generator=generator, **call)
    return found[0], out.report


def gaussian_chain(
    mixture: Mixture, scheduler: Any, steps: int, eta: float = 1.0
) -> tuple[float, float]:
    """Mean and variance of the DDIM(eta) sampler's output for one 1-D Gaussian; float64.

    The posterior mean of a Gaussian is linear in x, so the discretised sampler is a linear
    recursion: x' = a x + b + std noise, with a and b from Song et al. 2020 (arXiv:2010.02502),
    eq. 12, written out here independently of `steer.core.ddim`.
    """
    mean, std = float(mixture.means[0, 0]), float(mixture.stds[0])
    scheduler.set_timesteps(steps)
    schedule = Schedule.from_scheduler(scheduler)
    m, v = 0.0, float(getattr(scheduler, "init_noise_sigma", 1.0)) ** 2
    for step in schedule:
        a0, s0, a1, s1 = step.alpha, step.sigma, step.alpha_next, step.sigma_next
        gain = a0 * std**2 / (a0**2 * std**2 + s0**2)  # x0 = mean + gain (x - a0 mean)
        fresh = (eta * s1) ** 2 * (1 - (a0 * s1 / (a1 * s0)) ** 2)
        kept = math.sqrt(max(s1**2 - fresh, 0.0))
        slope = a1 * gain + kept * (1 - a0 * gain) / s0
        shift = (a1 - kept * a0 / s0) * mean * (1 - a0 * gain)
        m, v = slope * m + shift, slope**2 * v + fresh
    return m, v
