"""The layouts of latents in the pipelines' loops: tokens, frames first, channels last."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from steer.core.errors import AGAIN, UnsupportedPipelineError
from steer.driver.decoding.asked import Asked
from steer.driver.facts import makes_videos


_T = TypeVar("_T")


def unpack(pipe: Any, vae: Any, latents: Tensor, asked: Asked) -> Tensor:
    """Latents of the loop as the VAE has them: `(B, C, h, w)`, or `(B, C, f, h, w)` with frames.

    Raises:
        UnsupportedPipelineError: The layout is unknown.
    """
    if latents.ndim == 3:
        latents = _from_tokens(pipe, vae, latents, asked)
    elif _packs_videos(pipe):  # LTX from an image
        raise unknown(pipe, f"{tuple(latents.shape)}, the part behind the first frame")
    order = for_class(_ORDERS, pipe)
    if order is not None and latents.ndim == 5:
        latents = latents.permute(order)[:, : channels_of(vae)]
    if latents.ndim == 4 and decodes_frames(vae):
        latents = latents.unsqueeze(2)
    if latents.ndim == 5 and latents.shape[2] < asked.prepared_frames(pipe):
        raise unknown(pipe, f"{tuple(latents.shape)}, the part behind the first frame")
    if latents.ndim == 4 or (latents.ndim == 5 and (latents.shape[2] == 1 or makes_videos(pipe))):
        return latents
    raise unknown(pipe, f"{tuple(latents.shape)}")


def cut(pipe: Any, latents: Tensor, asked: Asked) -> Tensor:
    """Latents without frames and tokens that the pipeline drops before it decodes."""
    how = for_class(_CUTS, pipe)
    return latents if how is None else how(pipe, latents, asked)


def crop(pipe: Any, video: Tensor, asked: Asked) -> Tensor:
    """Decoded videos `(B, 3, F, H, W)` without what the pipeline drops of them."""
    how = for_class(_CROPS, pipe)
    return video if how is None else how(pipe, video, asked)


def decodes_frames(vae: Any) -> bool:
    """Whether the VAE takes `(B, C, f, h, w)`; others decode frame by frame."""
    return any(isinstance(part, nn.Conv3d) for part in vae.modules())


def channels_of(vae: Any) -> int | None:
    """Channels of the VAE's latents; None where its config does not tell."""
    config = getattr(vae, "config", None)
    return getattr(config, "latent_channels", None) or getattr(config, "z_dim", None)


def unknown(pipe: Any, why: str) -> UnsupportedPipelineError:
    """The error for latents that cannot be decoded."""
    return UnsupportedPipelineError(
        f"{type(pipe).__name__}: its latents cannot be decoded here ({why}), so that nothing "
        f"unfinished can be scored; {AGAIN}"
    )


def for_class(table: Mapping[str, _T], pipe: Any) -> _T | None:
    """The entry whose name begins the name of the pipeline's class, or of a base class."""
    names = [kind.__name__ for kind in type(pipe).__mro__]
    return next((row for key, row in table.items() if any(n.startswith(key) for n in names)), None)


def _transformer(pipe: Any) -> Any:
    """The config of the pipeline's transformer."""
    return getattr(getattr(pipe, "transformer", None), "config", None)


def _from_tokens(pipe: Any, vae: Any, latents: Tensor, asked: Asked) -> Tensor:
    """Tokens `(B, tokens, C)` unpacked: by the pipeline's own function where it has one."""
    height, width = asked.size(pipe)
    if hasattr(vae, "bn"):  # Flux 2: tokens in row order, patchified channels
        side = 2 * pipe.vae_scale_factor
        rows, columns = height // side, width // side
        if rows * columns == latents.shape[1]:
            return latents.permute(0, 2, 1).unflatten(2, (rows, columns))
        raise unknown(pipe, f"{latents.shape[1]} tokens for {height}x{width}")
    own = _unpacking(pipe, asked)
    known = {
        "latents": latents,
        "height": height,
        "width": width,
        "vae_scale_factor": getattr(pipe, "vae_scale_factor", None),
        "patch_size": getattr(_transformer(pipe), "patch_size", None),
        **_video_tokens(pipe, latents, asked),
    }
    names = inspect.signature(own).parameters if own else {}
    if own is None or not set(names) <= set(known):
        raise unknown(pipe, f"tokens {tuple(latents.shape)}, height={height}, width={width}")
    try:
        return own(**{name: known[name] for name in names})
    except (RuntimeError, TypeError) as error:
        size = f"{height}x{width}"
        raise unknown(pipe, f"{latents.shape[1]} tokens for {size}") from error


def _unpacking(pipe: Any, asked: Asked) -> Callable[..., Tensor] | None:
    """The pipeline's own function from tokens to latents."""
    whole = "do_patching" in asked.call and not asked.call["do_patching"]  # Bria Fibo
    plain = getattr(pipe, "_unpack_latents_no_patch", None) if whole else None
    return plain or getattr(pipe, "_unpack_latents", None)


def _packs_videos(pipe: Any) -> bool:
    """Whether videos are packed into tokens, as LTX does."""
    return hasattr(pipe, "_unpack_latents") and hasattr(pipe, "transformer_temporal_patch_size")


def _video_tokens(pipe: Any, latents: Tensor, asked: Asked) -> dict[str, Any]:
    """What LTX's `_unpack_latents` takes: sizes of the latents instead of the video's."""
    if not _packs_videos(pipe):
        return {}
    return {
        **dict(zip(("num_frames", "height", "width"), _token_grid(pipe, asked), strict=True)),
        "patch_size": pipe.transformer_spatial_patch_size,
        "patch_size_t": pipe.transformer_temporal_patch_size,
    }


def _token_grid(pipe: Any, asked: Asked) -> tuple[int, int, int]:
    """Frames, height and width of the latents that LTX packs into tokens of one entry each."""
    ratio = pipe.vae_spatial_compression_ratio
    height, width = asked.size(pipe)
    frames = asked.named("num_frames")
    if frames is None:
        raise unknown(pipe, "tokens of a video, and num_frames is not known")
    frames = (frames - 1) // pipe.vae_temporal_compression_ratio + 1
    return frames, height // ratio, width // ratio


def _condition_tokens(keep: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """Tokens of condition images beside those of the video are left out."""

    def without(pipe: Any, latents: Tensor, asked: Asked) -> Tensor:
        frames, height, width = _token_grid(pipe, asked)
        patch = pipe.transformer_temporal_patch_size * pipe.transformer_spatial_patch_size**2
        return keep(latents, frames * height * width // patch)

    return without


def _padded_frames(pipe: Any, latents: Tensor, asked: Asked) -> Tensor:
    """CogVideoX 1.5 fills up patches in time with frames at the front, `(B, f, C, h, w)`."""
    frames = latents.shape[1]
    return latents[:, max(frames - asked.latent_frames(pipe, frames), 0) :]


def _reference_frames(pipe: Any, latents: Tensor, asked: Asked) -> Tensor:
    """Wan VACE keeps its reference images as the first frames."""
    frames = latents.shape[2]
    return latents[:, :, max(frames - asked.latent_frames(pipe, frames), 0) :]


def _without_blend(pipe: Any, latents: Tensor, asked: Asked) -> Tensor:
    """Wan 2.2 of 5B puts its image's latents in place of the first frame after its loop."""
    if pipe.config.expand_timesteps:
        raise unknown(pipe, "its image's latents are put in after its loop")
    return latents


def _no_images(pipe: Any, latents: Tensor, asked: Asked) -> Tensor:
    raise unknown(pipe, "its predictions are no images")


def _in_sections(pipe: Any, latents: Tensor, asked: Asked) -> Tensor:
    raise unknown(pipe, "its videos are made in sections, one loop after the other")


def _no_given_frames(pipe: Any, latents: Tensor, asked: Asked) -> Tensor:
    """AnyFlow puts a given video over its first frames at the end."""
    if asked.named("video") is not None or asked.named("video_latents") is not None:
        raise unknown(pipe, "a given video replaces its first frames")
    return latents


def _plain_frames(pipe: Any, latents: Tensor, asked: Asked) -> Tensor:
    """ChronoEdit decodes its reasoning frames apart."""
    if asked.call.get("enable_temporal_reasoning") and latents.shape[2] > 2:
        raise unknown(pipe, "frames of temporal reasoning")
    return latents


def _asked_part(pipe: Any, video: Tensor, asked: Asked) -> Tensor:
    """Allegro decodes whole patches in time and space."""
    frames, (height, width) = asked.named("num_frames"), asked.size(pipe)
    return video[:, :, :frames, : height or None, : width or None]


def _as_many_frames(pipe: Any, video: Tensor, asked: Asked) -> Tensor:
    """Cosmos 2.5 repeats or drops frames until there are as many as asked for."""
    return pipe._match_num_frames(video, asked.named("num_frames", 0))


def _without_condition(pipe: Any, video: Tensor, asked: Asked) -> Tensor:
    """HunyuanVideo drops the frames of the image that it starts from."""
    concat = getattr(_transformer(pipe), "image_condition_type", None) == "latent_concat"
    return video[:, :, 4:] if concat else video


_ORDERS = {
    "Kandinsky5": (0, 4, 1, 2, 3),  # (B, f, h, w, C), with channels of conditions behind
    "AnyFlow": (0, 2, 1, 3, 4),  # (B, f, C, h, w)
}

_CUTS: dict[str, Callable[[Any, Tensor, Asked], Tensor]] = {
    "AnyFlowFAR": _in_sections,
    "AnyFlow": _no_given_frames,
    "Cosmos2_5_Transfer": _in_sections,
    "Helios": _in_sections,
    "HunyuanVideoFramepack": _in_sections,
    "LTXI2VLong": _in_sections,
    "Marigold": _no_images,
    "SkyReelsV2DiffusionForcing": _in_sections,
    "WanAnimate": _in_sections,
    "ChronoEdit": _plain_frames,
    "CogVideoX": _padded_frames,
    "WanImageToVideo": _without_blend,
    "WanVACE": _reference_frames,
    "LTX2Condition": _condition_tokens(lambda latents, count: latents[:, :count]),
    "LTX2InContext": _condition_tokens(lambda latents, count: latents[:, :count]),
    "LTXCondition": _condition_tokens(lambda latents, count: latents[:, -count:]),
}

_CROPS: dict[str, Callable[[Any, Tensor, Asked], Tensor]] = {
    "Allegro": _asked_part,
    "Cosmos2_5": _as_many_frames,
    "HunyuanVideoImageToVideo": _without_condition,
}
