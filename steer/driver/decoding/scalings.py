"""Latents of the loop to latents of the decoder: one table of scalings over VAE families."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steer.driver.decoding.layouts import for_class, unknown


def unscale(pipe: Any, vae: Any, latents: Tensor) -> Tensor:
    """The decoder's latents from the denoiser's, `(B, C, h, w)` or `(B, C, f, h, w)`.

    Raises:
        UnsupportedPipelineError: No row of the table fits.
    """
    for scaling in _SCALINGS:
        if scaling.fits(pipe, vae):
            return scaling.unscale(pipe, vae, latents)
    raise unknown(pipe, f"{type(vae).__name__} without scaling_factor")


class _Scaling(NamedTuple):
    """A family: whether a pipeline and its VAE are of it, and how its latents are scaled."""

    fits: Callable[[Any, Any], bool]
    unscale: Callable[[Any, Any, Tensor], Tensor]


def _configured(*names: str) -> Callable[[Any, Any], bool]:
    """VAEs whose config has all of these entries."""
    return lambda pipe, vae: all(getattr(vae.config, name, None) is not None for name in names)


def _has(*names: str) -> Callable[[Any, Any], bool]:
    """Pipelines that have one of these parts or functions."""
    return lambda pipe, vae: any(getattr(pipe, name, None) is not None for name in names)


def _per_channel(values: Any, like: Tensor) -> Tensor:
    shape = (1, -1, *(1,) * (like.ndim - 2))
    return torch.as_tensor(values).view(shape).to(like.device, like.dtype)


def _moments(vae: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of the latents, from the VAE's buffers or its config."""
    kept = _buffers(vae)
    if "latents_mean" in kept:
        return kept["latents_mean"], kept["latents_std"]
    return vae.config.latents_mean, vae.config.latents_std


def _buffers(vae: Any) -> dict[str, Tensor]:
    return dict(vae.named_buffers(recurse=False))


def _as_it_is(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    return z


def _multiplied(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    return vae.config.scale_factor * z


def _own(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    """By the pipeline's own `_denormalize_latents`."""
    known = [z, *_moments(vae), getattr(vae.config, "scaling_factor", 1.0)]
    count = len(inspect.signature(pipe._denormalize_latents).parameters)
    return pipe._denormalize_latents(*known[:count])


def _batch_normed(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    if not hasattr(pipe, "_unpatchify_latents"):
        raise unknown(pipe, "patches of a size and order of their own")
    if z.shape[1] != vae.bn.num_features:
        z = pipe._patchify_latents(z)
    mean = _per_channel(vae.bn.running_mean, z)
    variance = vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
    return pipe._unpatchify_latents(z * torch.sqrt(variance).to(z.device, z.dtype) + mean)


def _standardized_scaled(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    mean, std = (_per_channel(values, z) for values in _moments(vae))
    return z * std / vae.config.scaling_factor + mean


def _standardized(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    mean, std = (_per_channel(values, z) for values in _moments(vae))
    return z / (1.0 / std) + mean


def _reordered(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    return pipe._restore_image_tokens_order(z / vae.config.scaling_factor)


def _shifted(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    return z / vae.config.scaling_factor + vae.config.shift_factor


def _scaled(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    return z / vae.config.scaling_factor


# Pipelines that leave out the shift that their VAE's config names.
_WITHOUT_SHIFT = {"Kandinsky5": True, "StableDiffusion3Inpaint": True}

# The first one that fits is used.
_SCALINGS = (
    _Scaling(_has("movq"), _as_it_is),  # Kandinsky 2 and 3
    _Scaling(_has("vqgan"), _multiplied),  # Wuerstchen, Stable Cascade
    _Scaling(_has("_denormalize_latents"), _own),  # LTX, LTX 2, Motif
    _Scaling(_has("_restore_image_tokens_order"), _reordered),  # HunyuanImage refiner
    _Scaling(_configured("batch_norm_eps"), _batch_normed),  # Flux 2
    _Scaling(lambda pipe, vae: "latents_mean" in _buffers(vae), _standardized_scaled),  # Sana video
    _Scaling(lambda pipe, vae: bool(for_class(_WITHOUT_SHIFT, pipe)), _scaled),
    # SDXL, Playground, Mochi
    _Scaling(_configured("latents_mean", "latents_std", "scaling_factor"), _standardized_scaled),
    _Scaling(_configured("latents_mean", "latents_std"), _standardized),  # Wan, Qwen-Image
    _Scaling(_configured("scaling_factor", "shift_factor"), _shifted),  # SD3, Flux, Lumina, Z-Image
    # SD, PixArt, Sana, Kolors, AuraFlow, LDM, HunyuanVideo
    _Scaling(_configured("scaling_factor"), _scaled),
)
