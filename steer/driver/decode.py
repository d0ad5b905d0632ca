"""Latents to images or videos, as at the end of the pipeline's call; one table of VAE families."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.utils import torch_utils
from torch import Tensor, nn

from steer.core.errors import UnsupportedPipelineError


def decode(
    pipe: Any,
    latents: Tensor,
    *,
    chunk: int | None = None,
    grad: bool = False,
    height: int | None = None,
    width: int | None = None,
) -> Tensor:
    """Decode latents of the pipeline's loop.

    Returns what the pipeline returns for them with `output_type="pt"`, without its safety checker
    and watermark. The pipeline is not changed; a VAE that must be upcast (SDXL in float16) is cast
    for the call only.

    Under `enable_model_cpu_offload` the VAE's hook moves the denoiser off the device, and the next
    step moves it back: decode seldom there, or exclude the VAE (`pipe._exclude_from_cpu_offload`).

    Args:
        pipe: A diffusers pipeline with a `vae`, or one that works on pixels.
        latents: `(B, C, h, w)`, packed tokens `(B, tokens, C)` (Flux, Qwen-Image), or
            `(B, C, 1, h, w)`; of video pipelines (Wan) `(B, C, f, h, w)`.
        chunk: Images per VAE call; all at once by default, as the pipeline does, but videos one by
            one, since each is as large as a batch of images.
        grad: Record the decoding, so that gradients reach `latents`.
        height: Image height that the pipeline was asked for; its own default if `None`.
        width: Image width, likewise.

    Returns:
        Images `(B, 3, H, W)`, or videos `(B, F, 3, H, W)`, in [0, 1], float32, on the device of
        `latents`.

    Raises:
        UnsupportedPipelineError: The latent layout is unknown.
    """
    if chunk is None and _has_frames(pipe, latents):
        chunk = 1
    with torch.set_grad_enabled(grad):
        parts = latents.split(chunk) if chunk else (latents,)
        images = [_decode(pipe, part, grad, height, width) for part in parts]
        return torch.cat(images).to(latents.device)


def _decode(
    pipe: Any, latents: Tensor, grad: bool, height: int | None, width: int | None
) -> Tensor:
    vae = getattr(pipe, "vae", None)
    processor: Any = getattr(pipe, "image_processor", None) or getattr(
        pipe, "video_processor", None
    )
    if vae is None:
        image = _pixels(pipe, latents)
    else:
        latents = _unpack(pipe, vae, latents, height, width)
        image = _run_vae(pipe, vae, latents, grad)
    if image.ndim == 5 and image.shape[2] == 1:  # an image as a video of one frame
        image = image[:, :, 0]
    if image.ndim not in (4, 5) or image.shape[1] != 3:
        raise _unknown(pipe, f"its VAE returns {tuple(image.shape)}")
    if image.ndim == 5:
        return pipe.video_processor.postprocess_video(image, output_type="pt").float()
    if height and width and hasattr(processor, "resize_and_crop_tensor"):  # resolution binning
        image = processor.resize_and_crop_tensor(image, width, height)
    if processor is None:
        return (image * 0.5 + 0.5).clamp(0, 1).float()
    return processor.postprocess(image, output_type="pt").float()


def _unknown(pipe: Any, why: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(
        f"{type(pipe).__name__}: latents of unknown layout ({why}), so that nothing can be scored; "
        "steer decodes (B, C, h, w), tokens that the pipeline unpacks by their size, and Wan's "
        "frames (B, C, f, h, w)"
    )


def _pixels(pipe: Any, latents: Tensor) -> Tensor:
    """Pipelines without a VAE (DeepFloyd IF) denoise pixels in [-1, 1]."""
    if latents.ndim != 4 or latents.shape[1] != 3:
        raise _unknown(pipe, f"no vae, and latents {tuple(latents.shape)}")
    return latents


def _has_frames(pipe: Any, latents: Tensor) -> bool:
    """Whether these are latents of several frames, and the pipeline makes videos."""
    return latents.ndim == 5 and latents.shape[2] > 1 and hasattr(pipe, "video_processor")


def _unpack(pipe: Any, vae: Any, latents: Tensor, height: int | None, width: int | None) -> Tensor:
    """Latents as the VAE's scaling expects them: `(B, C, h, w)` or `(B, C, f, h, w)`."""
    if latents.ndim == 4 or (latents.ndim == 5 and latents.shape[2] == 1):
        return latents
    if _has_frames(pipe, latents) and _family(pipe, vae).videos:
        return latents
    if latents.ndim != 3:
        raise _unknown(pipe, f"{tuple(latents.shape)}")
    side = getattr(pipe, "default_sample_size", 0) * getattr(pipe, "vae_scale_factor", 0)
    known: dict[str, Any] = {
        "latents": latents,
        "height": height or side,
        "width": width or side,
        "vae_scale_factor": getattr(pipe, "vae_scale_factor", None),
    }
    if hasattr(vae, "bn"):  # Flux 2: tokens in row order, patchified channels
        rows, columns = (known[k] // (2 * pipe.vae_scale_factor) for k in ("height", "width"))
        if rows * columns == latents.shape[1]:
            return latents.permute(0, 2, 1).unflatten(2, (rows, columns))
    elif hasattr(pipe, "_unpack_latents"):
        names = inspect.signature(pipe._unpack_latents).parameters
        if set(names) <= set(known):
            try:
                return pipe._unpack_latents(**{k: known[k] for k in names})
            except RuntimeError as error:
                size = f"{known['height']}x{known['width']}"
                raise _unknown(pipe, f"{latents.shape[1]} tokens for {size}") from error
    raise _unknown(pipe, f"tokens {tuple(latents.shape)}, height={height}, width={width}")


def _run_vae(pipe: Any, vae: Any, latents: Tensor, grad: bool) -> Tensor:
    """Unscale and decode, in float32 where the pipeline does so."""
    upcast = (
        hasattr(pipe, "upcast_vae")
        and vae.dtype == torch.float16
        and getattr(vae.config, "force_upcast", False)
    )
    device = _device(vae)
    if not upcast:
        scaled = _unscale(pipe, vae, latents.to(device, vae.dtype))
        return vae.decode(scaled, return_dict=False)[0]
    scaled = _unscale(pipe, vae, latents.to(device, torch.float32))
    if grad:
        return _decode_float32(vae, scaled)
    vae.to(dtype=torch.float32)
    try:
        return vae.decode(scaled, return_dict=False)[0]
    finally:
        vae.to(dtype=torch.float16)


class _Decoder(nn.Module):
    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents, return_dict=False)[0]


def _decode_float32(vae: Any, latents: Tensor) -> Tensor:
    """Decode with float32 copies of the weights, which autograd keeps for the backward pass."""
    if hasattr(vae, "_hf_hook"):
        raise UnsupportedPipelineError(
            "gradients through an offloaded float16 VAE that needs float32: load the VAE in "
            "float32 or bfloat16, or switch offloading off."
        )
    module = _Decoder(vae)
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


def _per_channel(values: Any, like: Tensor) -> Tensor:
    shape = (1, -1, *(1,) * (like.ndim - 2))
    return torch.as_tensor(values).view(shape).to(like.device, like.dtype)


def _batch_normed(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    mean = _per_channel(vae.bn.running_mean, z)
    variance = vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
    return pipe._unpatchify_latents(z * torch.sqrt(variance).to(z.device, z.dtype) + mean)


def _standardized_scaled(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    std = _per_channel(vae.config.latents_std, z)
    return z * std / vae.config.scaling_factor + _per_channel(vae.config.latents_mean, z)


def _standardized(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    inverse = 1.0 / _per_channel(vae.config.latents_std, z)
    return z / inverse + _per_channel(vae.config.latents_mean, z)


def _shifted(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    return z / vae.config.scaling_factor + vae.config.shift_factor


def _scaled(pipe: Any, vae: Any, z: Tensor) -> Tensor:
    return z / vae.config.scaling_factor


class _Family(NamedTuple):
    """A family of VAEs: how latents of the loop become latents of the decoder.

    Attributes:
        config: Entries that the VAE's config must have.
        unscale: `(pipe, vae, latents)` to the decoder's latents.
        videos: Whether latents may have several frames, `(B, C, f, h, w)`.
    """

    config: tuple[str, ...]
    unscale: Callable[[Any, Any, Tensor], Tensor]
    videos: bool = False


# The first one whose config entries are all there is used.
_FAMILIES = (
    _Family(("batch_norm_eps",), _batch_normed),  # Flux 2
    # SDXL, Playground
    _Family(("latents_mean", "latents_std", "scaling_factor"), _standardized_scaled),
    _Family(("latents_mean", "latents_std"), _standardized, videos=True),  # Wan, Qwen-Image
    _Family(("scaling_factor", "shift_factor"), _shifted),  # SD3, Flux, Lumina, Z-Image
    _Family(("scaling_factor",), _scaled),  # SD, PixArt, Sana, Kolors, AuraFlow
)


def _family(pipe: Any, vae: Any) -> _Family:
    """The row of the table that fits."""
    for family in _FAMILIES:
        if all(getattr(vae.config, name, None) is not None for name in family.config):
            return family
    raise _unknown(pipe, f"{type(vae).__name__} without scaling_factor")


def _unscale(pipe: Any, vae: Any, latents: Tensor) -> Tensor:
    """The decoder's latents from the denoiser's."""
    return _family(pipe, vae).unscale(pipe, vae, latents)
