"""Tiny autoencoders for previews: which one fits a pipeline's latents, and loading it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import AutoencoderTiny

from steer.core.errors import CheckpointError, first_line
from steer.driver.decoding.vae import autoencoder
from steer.shapes import weights_folder


# Latent spaces by their AutoencoderKL's channels, scaling_factor and shift_factor, and the tiny
# autoencoder that was distilled for each (https://github.com/madebyollin/taesd). These take latents
# as they stand in the loop.
_TINY = {
    (4, 0.18215, None): "madebyollin/taesd",  # SD 1 and 2, PixArt-alpha, AnimateDiff, LCM
    (4, 0.13025, None): "madebyollin/taesdxl",  # SDXL, PixArt-Sigma, Kolors, HunyuanDiT, AuraFlow
    (16, 1.5305, 0.0609): "madebyollin/taesd3",  # SD 3 and 3.5
    (16, 0.3611, 0.1159): "madebyollin/taef1",  # Flux, Chroma, Lumina 2, HiDream, Z-Image
}
_LEVELS = 4  # resolutions of those autoencoders, which shrink images by 8


def load_own(pipe: Any) -> AutoencoderTiny:
    """The tiny autoencoder of the pipeline's latent space; downloaded if it is not cached.

    Raises:
        ValueError: None is known for it.
        CheckpointError: It cannot be loaded.
    """
    source = _source(autoencoder(pipe))
    if source is None:
        raise ValueError(
            f"preview='tiny': no tiny autoencoder is known for the latents of "
            f"{type(pipe).__name__} ({type(autoencoder(pipe)).__name__}); give the folder or hub "
            "id of an AutoencoderTiny for them, as in preview='path/to/tiny', or preview='linear'"
        )
    return load(source)


def load(source: str | Path) -> AutoencoderTiny:
    """An AutoencoderTiny from a folder or the hub; safetensors only, weights frozen.

    Raises:
        CheckpointError: Not found, of another class, a pickle, or tensors that are missing.
    """
    folder = Path(source).expanduser()
    source = folder if folder.is_dir() else source
    try:
        config: Any = AutoencoderTiny.load_config(source)
        if config.get("_class_name") != "AutoencoderTiny":
            raise CheckpointError(
                f"preview={str(source)!r} is a {config.get('_class_name')}: give an "
                "AutoencoderTiny, or the loaded module itself"
            )
        with _quiet():
            loaded: Any = AutoencoderTiny.from_pretrained(
                source, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"preview={str(source)!r}: no AutoencoderTiny can be loaded from there "
            f"({first_line(error)}); give a folder or hub id that holds its config.json and "
            "safetensors, or preview='linear', which needs no download"
        ) from error
    tiny, info = loaded
    missing = info["missing_keys"] or info["mismatched_keys"]
    if missing:
        raise CheckpointError(
            f"preview={str(source)!r}: its file lacks {len(missing)} tensors of an AutoencoderTiny "
            f"({missing[0]}): download or copy it again"
        )
    return tiny.eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' warning of an entry that it writes into these configs itself."""
    logger = logging.getLogger("diffusers.configuration_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _source(vae: Any) -> str | Path | None:
    """Where the tiny autoencoder for the latents of `vae` is; None where none is known."""
    config = getattr(vae, "config", None)
    if type(vae).__name__ != "AutoencoderKL" or config is None:
        return None
    name = config.get("_name_or_path")
    if name and Path(name).resolve().is_relative_to(weights_folder().resolve()):
        return weights_folder() / "tiny"
    if len(config.block_out_channels) != _LEVELS or config.get("latents_mean") is not None:
        return None
    space = config.latent_channels, config.scaling_factor, config.get("shift_factor")
    return _TINY.get(space)
