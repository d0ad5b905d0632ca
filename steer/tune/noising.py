"""The forward process of a pipeline: noisy latents, what the denoiser is to predict, and when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer.core.errors import TuneError
from steer.core.rows import per_row
from steer.core.types import Step
from steer.driver.facts import first_denoiser
from steer.tune.objectives import squared_error


PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")
_TIMESTEP_SCALE = {
    "UNet2DConditionModel": 1.0,
    "SD3Transformer2DModel": 1.0,
    "PixArtTransformer2DModel": 1.0,
    "SanaTransformer2DModel": 1.0,
    "WanTransformer3DModel": 1.0,
    "FluxTransformer2DModel": 1e-3,
    "ChromaTransformer2DModel": 1e-3,
    "QwenImageTransformer2DModel": 1e-3,
}
"""What pipelines multiply the scheduler's timestep by before the denoiser sees it."""


@dataclass(frozen=True)
class Noising:
    """x_t = alpha_t x0 + sigma_t noise on the grid the denoiser was trained on.

    Attributes:
        prediction: What the denoiser predicts: `"epsilon"` (the noise), `"v_prediction"`
            (alpha noise - sigma x0, arXiv:2202.00512), `"sample"` (x0) or `"flow"` (noise - x0).
        alpha, sigma: (T,) float32.
        timesteps: (T,) as the denoiser is given them.
    """

    prediction: str
    alpha: Tensor
    sigma: Tensor
    timesteps: Tensor

    @classmethod
    def of(cls, pipe: Any, timestep_scale: float | None = None) -> Noising:
        """The forward process that a pipeline's scheduler configuration describes.

        Diffusion: all training timesteps of the betas (with zero terminal SNR where asked for).
        Flow matching: all training sigmas, with the static shift; where shifting is dynamic (Flux)
        they are unshifted, as diffusers' own training scripts have them.

        Args:
            pipe: With a `scheduler` and a `unet` or `transformer`.
            timestep_scale: Of denoisers that are not known here.

        Raises:
            TuneError: An unknown prediction type, scheduler or denoiser.
        """
        config = dict(pipe.scheduler.config)
        scale = scale_of(pipe, timestep_scale)
        if is_flow(pipe.scheduler):
            sigma, timesteps = _flow_grid(pipe.scheduler, config)
            return cls("flow", 1 - sigma, sigma, timesteps * scale)
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS[:3]:
            raise TuneError(
                f"prediction_type={prediction!r} of {type(pipe.scheduler).__name__}: unknown; "
                f"steer trains {', '.join(PREDICTIONS[:3])} and flow matching"
            )
        if "beta_start" not in config:
            raise TuneError(
                f"scheduler={type(pipe.scheduler).__name__}: has neither betas nor flow sigmas in "
                "its configuration; set a scheduler such as DDIMScheduler or FlowMatchEuler first"
            )
        cumulative = _alphas_cumprod(config)
        return cls(
            prediction,
            cumulative.sqrt(),
            (1 - cumulative).sqrt(),
            torch.arange(len(cumulative)) * scale if scale != 1 else torch.arange(len(cumulative)),
        )

    @classmethod
    def at(cls, step: Step, dtype: torch.dtype = torch.float32) -> Noising:
        """The one level of a run's step, with latents as the denoiser is given them."""
        level = input_level(step)
        alpha, sigma = (torch.tensor([x / level], dtype=dtype) for x in (step.alpha, step.sigma))
        return cls(step.prediction, alpha, sigma, step.t.reshape(1))

    def __len__(self) -> int:
        return len(self.timesteps)

    def between(self, low: float, high: float) -> Noising:
        """The part of the grid between two shares of it: 0 is the least noise, 1 the most.

        Raises:
            TuneError: Nothing lies between.
        """
        order = (self.sigma / self.alpha.clamp(min=1e-12)).argsort()
        kept = order[round(low * len(order)) : round(high * len(order))].sort().values
        if not len(kept):
            raise TuneError(
                f"noise_range=[{low:g}, {high:g}]: holds none of {len(order)} timesteps; widen it"
            )
        parts = (x[kept] for x in (self.alpha, self.sigma, self.timesteps))
        return Noising(self.prediction, *parts)

    def to(self, device: torch.device | str) -> Noising:
        """The same on a device."""
        moved = (x.to(device) for x in (self.alpha, self.sigma, self.timesteps))
        return Noising(self.prediction, *moved)

    def add_noise(self, x0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """x_t for rows of `index` (B,) into the grid: (B, *latent)."""
        return _along(self.alpha[index], x0) * x0 + _along(self.sigma[index], x0) * noise

    def predict(
        self, model: Any, noisy: Tensor, index: Tensor, text: Mapping[str, Tensor]
    ) -> Tensor:
        """The denoiser's answer, (B, *latent); `text` are its further arguments by dotted name."""
        return predict(model, noisy, self.timesteps[index], nest(text))

    def error(self, prediction: Tensor, x0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """The mean squared error of a prediction, (B,)."""
        return squared_error(prediction, self.target(x0, noise, index))

    def change(self, prediction: Tensor, old: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """The mean squared difference of two predictions, (B,)."""
        return squared_error(prediction, old)

    def target(self, x0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """What a perfect denoiser would answer to `add_noise(x0, noise, index)`: (B, *latent)."""
        match self.prediction:
            case "epsilon":
                return noise
            case "sample":
                return x0
            case "flow":
                return noise - x0
            case _:
                alpha, sigma = _along(self.alpha[index], x0), _along(self.sigma[index], x0)
                return alpha * noise - sigma * x0


def input_level(step: Step) -> float:
    """What a run's latents are divided by before the denoiser sees them: 1 but on VE grids."""
    return 1.0 if step.prediction == "flow" else math.hypot(step.alpha, step.sigma)


def scale_of(pipe: Any, given: float | None = None) -> float:
    """What a pipeline multiplies the scheduler's timestep by: `given`, or what is known.

    Raises:
        TuneError: Neither.
    """
    return _known_scale(denoiser(pipe)[1]) if given is None else given


def denoiser(pipe: Any) -> tuple[str, Any]:
    """The attribute and the module of a pipeline's denoiser.

    Raises:
        TuneError: It has neither `unet` nor `transformer`.
    """
    found = first_denoiser(pipe)
    if found is None:
        raise TuneError(f"pipeline={type(pipe).__name__}: has neither a unet nor a transformer")
    return found


def predict(model: Any, noisy: Tensor, timesteps: Tensor, conditions: Mapping[str, Any]) -> Tensor:
    """The denoiser's answer, (B, *latent); a predicted variance (PixArt) is left out.

    Args:
        model: A UNet or transformer of diffusers.
        noisy: (B, *latent).
        timesteps: (B,) as it wants them.
        conditions: Its further keyword arguments, as `nest` makes them.
    """
    out = model(noisy, timestep=timesteps, **conditions, return_dict=False)[0]
    channels = noisy.shape[1]
    return out if out.shape == noisy.shape else out[:, :channels]


def nest(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keyword arguments from dotted names: `a.b` becomes `a={"b": ...}`."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        outer, _, inner = name.partition(".")
        if inner:
            found.setdefault(outer, {})[inner] = value
        else:
            found[outer] = value
    return found


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler's configuration describes flow matching."""
    config = scheduler.config
    return (
        "FlowMatch" in type(scheduler).__name__
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def _known_scale(model: Any) -> float:
    name = type(model).__name__
    if name not in _TIMESTEP_SCALE:
        raise TuneError(
            f"denoiser={name}: steer does not know what timesteps its pipeline gives it; set "
            "timestep_scale (1 where they are 0 to 1000, 0.001 where they are 0 to 1)"
        )
    return _TIMESTEP_SCALE[name] * float(getattr(model.config, "timestep_scale", 1.0))  # Sana's


def _alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """(T,) as diffusers' DDPMScheduler has them for these betas."""
    from diffusers import DDPMScheduler

    names = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
    )
    return DDPMScheduler(**{n: config[n] for n in names if n in config}).alphas_cumprod


def _flow_grid(scheduler: Any, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Sigmas and timesteps, (T,) each, from noise to image."""
    count = config.get("num_train_timesteps", 1000)
    if "FlowMatch" in type(scheduler).__name__:
        fresh = type(scheduler).from_config(scheduler.config)
        return fresh.sigmas[:count].float(), fresh.timesteps[:count].float()
    even = torch.linspace(1, 1 / count, count)
    shift = config.get("flow_shift") or 1.0
    sigma = shift * even / (1 + (shift - 1) * even)
    return sigma, sigma * count


def _along(values: Tensor, like: Tensor) -> Tensor:
    return per_row(values, like).to(like.dtype)
