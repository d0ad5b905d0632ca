"""Latents to images or videos, as at the end of the pipeline's call."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steer.driver.decoding.asked import Asked
from steer.driver.decoding.layouts import crop, cut, unknown, unpack
from steer.driver.decoding.scalings import unscale
from steer.driver.decoding.vae import autoencoder, decode_latents, in_its_precision
from steer.driver.facts import makes_videos
from steer.driver.safety import asks_guardrail


if TYPE_CHECKING:
    from steer.driver.decoding.previews import PreviewDecoder


def decode(
    pipe: Any,
    latents: Tensor,
    *,
    chunk: int | None = None,
    grad: bool = False,
    asked: Asked | None = None,
    by: PreviewDecoder | None = None,
) -> Tensor:
    """Decode latents of the pipeline's loop.

    Returns what the pipeline returns for them with `output_type="pt"`, without its safety checker
    and watermark. The pipeline is not changed; a VAE that must be upcast (SDXL in float16) is cast
    for the call only. Frames go through a VAE of images in the pipeline's own chunks
    (`decode_chunk_size`).

    Under `enable_model_cpu_offload` the VAE's hook moves the denoiser off the device, and the next
    step moves it back: decode seldom there, or exclude the VAE (`pipe._exclude_from_cpu_offload`).

    Args:
        pipe: A diffusers pipeline with an autoencoder, or one that works on pixels.
        latents: As the pipeline's loop has them: `(B, C, h, w)`, packed tokens `(B, tokens, C)`
            (Flux, Qwen-Image, LTX), or of videos, mostly `(B, C, f, h, w)`.
        chunk: Rows per VAE call; all at once by default, as the pipeline does, but videos one by
            one, since each is as large as a batch of images.
        grad: Record the decoding, so that gradients reach `latents`.
        asked: What the call asked for: height, width, frames; the pipeline's own defaults if
            `None`.
        by: What decodes in place of the pipeline's own decoder.

    Returns:
        Images `(B, 3, H, W)`, or videos `(B, F, 3, H, W)`, in [0, 1], float32, on the device of
        `latents`.

    Raises:
        UnsupportedPipelineError: The latent layout is unknown.
    """
    asked = asked or Asked()
    if chunk is None and _has_frames(pipe, latents):
        chunk = 1
    with torch.set_grad_enabled(grad):
        parts = latents.split(chunk) if chunk else (latents,)
        images = [_finish(pipe, _decode(pipe, part, grad, asked, by), asked) for part in parts]
        return torch.cat(images).to(latents.device)


def check(pipe: Any, latents: Tensor, asked: Asked) -> None:
    """Raise UnsupportedPipelineError where `decode` would, without running the VAE."""
    vae = autoencoder(pipe)
    if vae is None:
        _pixels(pipe, latents)
    elif not _decodes_itself(pipe):
        unscale(pipe, vae, unpack(pipe, vae, cut(pipe, latents[:1], asked), asked))


def unfitted(pipe: Any, latents: Tensor, asked: Asked, by: PreviewDecoder) -> int:
    """Decodes by the pipeline's own decoder that `by` is fitted to before it shows these."""
    unpacked = unpack(pipe, autoencoder(pipe), cut(pipe, latents[:1], asked), asked)
    return by.unfitted(pipe, unpacked)


def _decode(
    pipe: Any, latents: Tensor, grad: bool, asked: Asked, by: PreviewDecoder | None
) -> Tensor:
    """Images `(B, 3, H, W)` or videos `(B, 3, F, H, W)` in the decoder's range."""
    vae = autoencoder(pipe)
    if vae is None:
        return _pixels(pipe, latents)
    if not latents.is_floating_point():
        return in_its_precision(pipe, vae, latents, grad, lambda z: _of_codes(pipe, vae, z))
    latents = cut(pipe, latents, asked)
    if by is None and _decodes_itself(pipe):
        return in_its_precision(pipe, vae, latents, grad, lambda z: _own(pipe, z, asked))
    latents = unpack(pipe, vae, latents, asked)
    if by is None:
        image = decode_latents(pipe, vae, latents, grad, asked)
    else:
        image = by.images(pipe, latents, grad, asked)
    return image[:, :, 0] if image.ndim == 5 and not makes_videos(pipe) else image


def _of_codes(pipe: Any, vae: Any, tokens: Tensor) -> Tensor:
    """Images in [0, 1] of places in a codebook `(B, h, w)`: masked generators (Amused)."""
    if tokens.ndim != 3 or not hasattr(vae, "quantize"):
        raise unknown(pipe, f"whole numbers {tuple(tokens.shape)}, and no codebook for them")
    shape = (*tokens.shape, vae.config.latent_channels)
    return vae.decode(tokens, force_not_quantize=True, shape=shape).sample.clip(0, 1)


def _pixels(pipe: Any, latents: Tensor) -> Tensor:
    """Pipelines without an autoencoder (DeepFloyd IF) denoise pixels in [-1, 1]."""
    if latents.ndim != 4 or latents.shape[1] != 3:
        raise unknown(pipe, f"no vae, and latents {tuple(latents.shape)}")
    return latents


def _decodes_itself(pipe: Any) -> bool:
    """Whether the pipeline has a function that decodes its videos; those for images are old."""
    return makes_videos(pipe) and hasattr(pipe, "decode_latents")


def _own(pipe: Any, latents: Tensor, asked: Asked) -> Tensor:
    """Videos by the pipeline's own `decode_latents`: AnimateDiff, CogVideoX, SVD, Latte, ..."""
    frames = {"num_frames": 1, "video_length": 2}  # where they are counted
    names = inspect.signature(pipe.decode_latents).parameters
    options = {name: latents.shape[axis] for name, axis in frames.items() if name in names}
    if "decode_chunk_size" in names:
        count = latents.shape[1 if "num_frames" in names else 2]
        options["decode_chunk_size"] = asked.named("decode_chunk_size", count)
    return pipe.decode_latents(latents, **options)


def _has_frames(pipe: Any, latents: Tensor) -> bool:
    """Whether these are latents of several frames, and the pipeline makes videos."""
    return makes_videos(pipe) and (latents.ndim == 3 or 1 not in latents.shape[1:3])


def _finish(pipe: Any, image: Tensor, asked: Asked) -> Tensor:
    """What the decoder returned, cut to what was asked for and brought to [0, 1]."""
    if image.ndim not in (4, 5) or image.shape[1] != 3:
        raise unknown(pipe, f"its VAE returns {tuple(image.shape)}")
    if image.ndim == 5:
        video = _resized(pipe, crop(pipe, image, asked), pipe.video_processor, asked)
        video = pipe.video_processor.postprocess_video(video, output_type="pt").float()
        return _eight_bits(video) if asks_guardrail(pipe) else video
    if getattr(pipe, "vqgan", None) is not None:  # Wuerstchen, Stable Cascade
        return image.clamp(0, 1).float()
    processor: Any = getattr(pipe, "image_processor", None)
    if processor is None:
        return _to_unit(image)
    image = _resized(pipe, image, processor, asked)
    return processor.postprocess(image, output_type="pt").float()


def _resized(pipe: Any, image: Tensor, processor: Any, asked: Asked) -> Tensor:
    """Resized and cropped to the size of the call, where the pipeline computes at one of its own.

    That is resolution binning: PixArt, Sana, PRX.
    """
    height, width = asked.call.get("height"), asked.call.get("width")
    bins = "use_resolution_binning" in inspect.signature(pipe.__call__).parameters
    if not (bins and asked.call.get("use_resolution_binning", True) and height and width):
        return image
    return processor.resize_and_crop_tensor(image, width, height)


def _eight_bits(video: Tensor) -> Tensor:
    """Cut to 256 levels; gradients pass through."""
    return video + ((video * 255).floor() / 255 - video).detach()


def _to_unit(image: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (image * 0.5 + 0.5).clamp(0, 1).float()


def returned(pipe: Any, images: Tensor) -> Tensor:
    """What the pipeline returned with `output_type="pt"`, in [0, 1], float32.

    DeepFloyd IF, Kandinsky and PRX without a VAE return what they computed, in [-1, 1]; a pipeline
    of a user's own without a VAE may do either, so that a pixel below 0 decides.
    """
    prompted = "prompt" in inspect.signature(pipe.__call__).parameters
    movq = getattr(pipe, "movq", None) is not None and not hasattr(pipe, "image_processor")
    raw = movq or (prompted and autoencoder(pipe) is None)
    return _to_unit(images) if raw and bool((images < 0).any()) else images.float()
