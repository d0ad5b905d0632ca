"""Cheap decoders of x0 previews in place of the pipeline's own: tiny autoencoders, a linear map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from steer.driver.decoding import tiny
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.layouts import channels_of, decodes_frames
from steer.driver.decoding.vae import (
    autoencoder,
    call_vae,
    decode_latents,
    frame_by_frame,
    in_its_precision,
)
from steer.driver.facts import makes_videos


_PLACES = 4096  # in the latents that a linear map is fitted to
_EXAMPLES = (
    "None or 'vae' (the pipeline's own), 'tiny', 'linear', the folder or hub id of an "
    "AutoencoderTiny, or a torch module with decode"
)


class PreviewDecoder(ABC):
    """What decodes previews in place of the pipeline's own decoder; `name` is for reports."""

    name: str

    def unfitted(self, pipe: Any, latents: Tensor) -> int:
        """Decodes by the pipeline's own decoder that it is fitted to before it shows these."""
        return 0

    @abstractmethod
    def images(self, pipe: Any, latents: Tensor, grad: bool, asked: Asked) -> Tensor:
        """Images `(B, 3, H, W)`, or videos `(B, 3, F, H, W)`, in the range of the VAE's.

        Args:
            pipe: The pipeline.
            latents: Unpacked and as they are scaled in the loop: `(B, C, h, w)` or
                `(B, C, f, h, w)`.
            grad: Record the decoding.
            asked: What the call asked for.
        """


def preview_decoder(pipe: Any, preview: Any) -> PreviewDecoder | None:
    """The decoder that `guided(preview=...)` names; None for the pipeline's own.

    Raises:
        ValueError: A value of no meaning, a decoder of other latents, a pipeline whose previews
            no other decoder can show, or `"tiny"` where no tiny autoencoder is known.
        CheckpointError: A tiny autoencoder that cannot be loaded.
    """
    if preview is None or isinstance(preview, PreviewDecoder):
        return preview
    if isinstance(preview, str) and preview == "vae":
        return None
    known = isinstance(preview, str | Path) and str(preview)
    if not known and not callable(getattr(preview, "decode", None)):
        raise ValueError(f"preview={preview!r}: must be {_EXAMPLES}")
    _check_pipeline(pipe, preview)
    if preview == "linear":
        return LinearDecoder()
    if preview == "tiny":
        return ModuleDecoder(pipe, tiny.load_own(pipe), "tiny", moves=True)
    if isinstance(preview, str | Path):
        return ModuleDecoder(pipe, tiny.load(preview), str(preview), moves=True)
    return ModuleDecoder(pipe, preview, type(preview).__name__)


def _check_pipeline(pipe: Any, preview: Any) -> None:
    """Raise ValueError where only the pipeline itself can show its previews."""
    vae, kind = autoencoder(pipe), type(pipe).__name__
    asked = f"preview={preview!r}" if isinstance(preview, str | Path) else "preview"
    if vae is None:
        raise ValueError(f"{asked}: {kind} denoises pixels, which nothing decodes; leave it out")
    if not (makes_videos(pipe) and decodes_frames(vae)):
        return
    own = hasattr(pipe, "decode_latents")
    if own or not (isinstance(preview, nn.Module) and decodes_frames(preview)):
        raise ValueError(
            f"{asked}: the VAE of {kind} shrinks videos in time too, and this decoder shows single "
            "images; leave it out"
            + ("" if own else ", or pass a loaded autoencoder of videos with the same latents")
        )


class ModuleDecoder(PreviewDecoder):
    """Another autoencoder: a tiny one, or any module with `decode`.

    An AutoencoderTiny takes latents as they stand in the loop, or as its own `scaling_factor` and
    `shift_factor` say; any other autoencoder of diffusers is used as the pipeline would use it; a
    module without a config gets latents as they stand in the loop, and returns images in [-1, 1].

    Args:
        pipe: The pipeline.
        module: With `decode`.
        name: For reports.
        moves: Whether it follows the pipeline's VAE to its device and dtype.

    Raises:
        ValueError: It decodes latents of another number of channels, or of another size.
    """

    def __init__(self, pipe: Any, module: Any, name: str, moves: bool = False) -> None:
        self.module, self.name, self.moves = module, name, moves
        own, kind = autoencoder(pipe), type(pipe).__name__
        theirs, ours = channels_of(module), channels_of(own)
        if theirs is not None and ours is not None and theirs != ours:
            raise ValueError(
                f"preview={name!r}: decodes latents of {theirs} channels, and those of {kind} have "
                f"{ours}; give a decoder for its latents, or preview='linear'"
            )
        theirs, ours = _factor(module), _factor(own)
        if theirs is not None and ours is not None and theirs != ours:
            raise ValueError(
                f"preview={name!r}: enlarges latents {theirs} times, and the VAE of {kind} "
                f"{ours} times; give a decoder for its latents, or preview='linear'"
            )

    def images(self, pipe: Any, latents: Tensor, grad: bool, asked: Asked) -> Tensor:
        module: Any = self.module
        if self.moves:
            nn.Module.to(module, latents.device, autoencoder(pipe).dtype)
        if not hasattr(module, "config"):
            frames = isinstance(module, nn.Module) and decodes_frames(module)
            return self._plain(latents) if frames else frame_by_frame(latents, self._plain)
        if not isinstance(module, AutoencoderTiny):
            return decode_latents(pipe, module, latents, grad, asked)
        config: Any = module.config
        scale, shift = config.scaling_factor, config.shift_factor
        return in_its_precision(
            pipe, module, latents, grad, lambda z: call_vae(pipe, module, z / scale + shift, asked)
        )

    def _plain(self, latents: Tensor) -> Tensor:
        decode: Any = self.module.decode
        weights = self.module.parameters() if isinstance(self.module, nn.Module) else iter(())
        made: Any = decode(latents.to(next(weights, latents)))
        made = made[0] if isinstance(made, tuple) else getattr(made, "sample", made)
        return made.to(latents.device)


class LinearDecoder(PreviewDecoder):
    """The best linear map from latents to colours, enlarged bilinearly.

    Fitted by least squares to the pipeline's own decodes of seeded noise, for every latent shape
    once, so that what it shows depends on nothing but the pipeline.
    """

    name = "linear"

    def __init__(self) -> None:
        self._vae: Any = None
        self._maps: dict[tuple[int, ...], tuple[Tensor, tuple[int, int]]] = {}

    def unfitted(self, pipe: Any, latents: Tensor) -> int:
        shape = _shape(latents)
        known = autoencoder(pipe) is self._vae and shape in self._maps
        return 0 if known else _rows(shape)

    def images(self, pipe: Any, latents: Tensor, grad: bool, asked: Asked) -> Tensor:
        shape = _shape(latents)
        if autoencoder(pipe) is not self._vae:
            self._vae, self._maps = autoencoder(pipe), {}
        if shape not in self._maps:
            with torch.no_grad():
                self._maps[shape] = self._fit(pipe, shape, latents.device, asked)
        weights, size = self._maps[shape]
        weights = weights.to(latents.device, torch.promote_types(latents.dtype, torch.float32))

        def show(z: Tensor) -> Tensor:
            colours = torch.einsum("bchw,ck->bkhw", z.to(weights), weights[:-1])
            return _enlarged(colours + weights[-1].view(1, -1, 1, 1), size)

        return frame_by_frame(latents, show)

    def _fit(
        self, pipe: Any, shape: tuple[int, ...], device: torch.device, asked: Asked
    ) -> tuple[Tensor, tuple[int, int]]:
        """The map `(C + 1, 3)`, float64 on the CPU, and height and width of the images."""
        gram, moment = 0.0, 0.0
        size = (0, 0)
        for z in _noise((_rows(shape), *shape)).to(device).split(1):
            image = decode_latents(pipe, self._vae, _like_loop(self._vae, z), False, asked)
            image = image[:, :, 0] if image.ndim == 5 else image
            size = (image.shape[-2], image.shape[-1])
            seen = _enlarged(z, size).flatten(2)[0].T.cpu().double()
            seen = torch.cat([seen, seen.new_ones(len(seen), 1)], 1)
            gram = gram + seen.T @ seen
            moment = moment + seen.T @ image.flatten(2)[0].T.cpu().double()
        assert isinstance(gram, Tensor) and isinstance(moment, Tensor)
        return torch.linalg.lstsq(gram, moment, driver="gelsd").solution, size


def _factor(module: Any) -> int | None:
    """How much larger its images are than its latents; None where its config does not tell."""
    if type(module).__name__ not in ("AutoencoderKL", "AutoencoderTiny"):
        return None
    each = module.config.get("upsampling_scaling_factor", 2)
    return each ** (len(module.config.block_out_channels) - 1)


def _like_loop(vae: Any, latents: Tensor) -> Tensor:
    """`(1, C, h, w)` with a frame where the VAE has frames."""
    return latents.unsqueeze(2) if decodes_frames(vae) else latents


def _shape(latents: Tensor) -> tuple[int, ...]:
    """Channels, height and width."""
    return (latents.shape[1], *latents.shape[-2:])


def _rows(shape: tuple[int, ...]) -> int:
    """Decodes that a linear map is fitted to: 4, and more where latents are small, up to 16."""
    return min(16, max(4, _PLACES // (shape[-2] * shape[-1])))


def _noise(shape: tuple[int, ...]) -> Tensor:
    """Seeded noise of unit variance, as strong at every scale: latents of images are smooth."""
    generator = torch.Generator().manual_seed(0)
    height, width = shape[-2:]
    total, scale = torch.zeros(shape), 1
    while True:
        size = (max(height // scale, 1), max(width // scale, 1))
        coarse = torch.randn(*shape[:-2], *size, generator=generator)
        total += _enlarged(coarse, (height, width))
        if size == (1, 1):
            break
        scale *= 2
    return total / total.std()


def _enlarged(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
