"""The autoencoder of a pipeline: which part it is, where it runs, and in which precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils import torch_utils
from torch import Tensor, nn

from steer.core.errors import UnsupportedPipelineError
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.layouts import decodes_frames
from steer.driver.decoding.scalings import unscale


_NAMES = ("vae", "movq", "vqvae", "vqgan")


def autoencoder(pipe: Any) -> Any:
    """The part that decodes latents; None of pipelines that denoise pixels."""
    found = (getattr(pipe, name, None) for name in _NAMES)
    return next((part for part in found if part is not None), None)


def in_its_precision(
    pipe: Any, vae: Any, latents: Tensor, grad: bool, run: Callable[[Tensor], Tensor]
) -> Tensor:
    """`run(latents)` on the VAE's device and in its dtype; in float32 where the pipeline does so.

    A VAE that must be upcast (SDXL in float16) is cast for the call only. Tokens of a codebook
    stay whole numbers.
    """
    tokens = not latents.is_floating_point()
    upcast = (
        (tokens or hasattr(pipe, "upcast_vae"))
        and vae.dtype == torch.float16
        and getattr(vae.config, "force_upcast", False)
    )
    kind = latents.dtype if tokens else torch.float32 if upcast else vae.dtype
    latents = latents.to(_device(vae), kind)
    if not upcast:
        return run(latents)
    if grad:
        return _run_float32(vae, latents, run)
    vae.to(dtype=torch.float32)
    try:
        return run(latents)
    finally:
        vae.to(dtype=torch.float16)


def decode_latents(pipe: Any, vae: Any, latents: Tensor, grad: bool, asked: Asked) -> Tensor:
    """The images of unpacked latents as they are scaled in the loop, by `vae`, in its range."""
    return in_its_precision(
        pipe, vae, latents, grad, lambda z: call_vae(pipe, vae, unscale(pipe, vae, z), asked)
    )


def call_vae(pipe: Any, vae: Any, latents: Tensor, asked: Asked) -> Tensor:
    """The VAE's images `(B, 3, H, W)` or videos `(B, 3, F, H, W)`, in its own range.

    A VAE of images decodes the frames of a video as a batch.
    """
    if latents.ndim == 5 and not decodes_frames(vae):
        return frame_by_frame(latents, lambda z: call_vae(pipe, vae, z, asked))
    options: dict[str, Any] = {"return_dict": False}
    if getattr(pipe, "movq", None) is vae:
        options["force_not_quantize"] = True
    if getattr(vae.config, "timestep_conditioning", False):  # LTX: the last step is the decoder's
        latents, options["temb"] = _noised(latents, asked)
    return vae.decode(latents, **options)[0]


def frame_by_frame(latents: Tensor, show: Callable[[Tensor], Tensor]) -> Tensor:
    """`show` of the frames of `(B, C, f, h, w)` as a batch; of `(B, C, h, w)` as it is."""
    if latents.ndim == 4:
        return show(latents)
    images = show(latents.transpose(1, 2).flatten(0, 1))
    return images.unflatten(0, (len(latents), -1)).transpose(1, 2)


def _noised(latents: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """Latents and timesteps of a decoder that denoises.

    The pipeline draws this noise anew in every call; here it is the same for all particles.
    """
    rows = len(latents)
    time = asked.named("decode_timestep", 0.0)
    scale = asked.named("decode_noise_scale", time)
    time, scale = (
        torch.as_tensor(value if not isinstance(value, list) else value[0]).to(latents)
        for value in (time, scale)
    )
    if float(scale):
        drawn = torch.Generator().manual_seed(0)
        noise = torch.randn(latents.shape[1:], generator=drawn).to(latents)
        latents = (1 - scale) * latents + scale * noise
    return latents, time.expand(rows)


class _Running(nn.Module):
    def __init__(self, vae: nn.Module, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.vae, self.run = vae, run

    def forward(self, latents: Tensor) -> Tensor:
        return self.run(latents)


def _run_float32(vae: Any, latents: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Run with float32 copies of the weights, which autograd keeps for the backward pass."""
    if hasattr(vae, "_hf_hook"):
        raise UnsupportedPipelineError(
            "gradients through an offloaded float16 VAE that needs float32: load the VAE in "
            "float32 or bfloat16, or switch offloading off."
        )
    module = _Running(vae, run)
    tensors = [*module.named_parameters(), *module.named_buffers()]
    weights = {k: v.float() if v.is_floating_point() else v for k, v in tensors}
    return torch.func.functional_call(module, weights, (latents,))


def _device(vae: Any) -> torch.device:
    """Where the VAE runs, which under offloading is not where its weights are."""
    find = getattr(torch_utils, "get_module_execution_device", None)
    if find is not None:
        return find(vae)
    hook = getattr(vae, "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or vae.device)
