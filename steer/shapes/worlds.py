"""The bundled pipelines: three models of the same world, from the packaged safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

from steer.core.errors import CheckpointError


if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline

World: TypeAlias = Literal["diffusion", "flow", "turbo"]

NAMES: dict[str, World] = {"shapes": "diffusion", "shapes-flow": "flow", "shapes-turbo": "turbo"}
"""What commands and configuration files call them."""

STEPS: dict[World, int] = {"diffusion": 20, "flow": 20, "turbo": 4}
"""Steps of a plain call that names none."""


def weights_folder() -> Path:
    """The folder of the packaged weights: pipelines, rewards and tuned checkpoints."""
    return Path(__file__).parent / "weights"


@overload
def pipeline(
    world: Literal["diffusion", "turbo"] = "diffusion", device: str = "cpu"
) -> StableDiffusionPipeline: ...
@overload
def pipeline(world: Literal["flow"], device: str = "cpu") -> StableDiffusion3Pipeline: ...
@overload
def pipeline(world: World, device: str = "cpu") -> Any: ...
def pipeline(world: World = "diffusion", device: str = "cpu") -> Any:
    """A pipeline of the world, float32, from the packaged safetensors.

    Args:
        world: `"diffusion"`, a StableDiffusionPipeline with DDIM; `"flow"`, a
            StableDiffusion3Pipeline with Euler steps; `"turbo"`, the first one distilled to one to
            eight steps, called without guidance.
        device: Where its modules go.

    Raises:
        ValueError: There is no such world.
        CheckpointError: The weights are not there (a source tree without them).
    """
    if world not in get_args(World):
        raise ValueError(f"world={world!r}: must be {', '.join(map(repr, get_args(World)))}")
    build = {"diffusion": _diffusion, "flow": _flow, "turbo": _turbo}[world]
    return build(weights_folder()).to(device)


def _diffusion(weights: Path, **parts: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    folder = _present(weights / "pipeline", "model_index.json")
    return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, **parts)


def _turbo(weights: Path) -> Any:
    """The diffusion model's text encoder and autoencoder around a UNet of its own."""
    from diffusers import LCMScheduler, UNet2DConditionModel

    folder = _present(weights / "turbo", "unet/config.json")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True)
    scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    return _diffusion(weights, unet=unet, scheduler=scheduler)


def _flow(weights: Path) -> Any:
    """A transformer and text encoders of its own; the autoencoder is the diffusion model's."""
    from diffusers import AutoencoderKL, StableDiffusion3Pipeline

    folder = _present(weights / "flow", "model_index.json")
    vae: Any = AutoencoderKL.from_pretrained(
        weights / "pipeline", subfolder="vae", local_files_only=True
    )
    vae.register_to_config(shift_factor=0.0)  # which this pipeline adds
    return StableDiffusion3Pipeline.from_pretrained(
        folder, vae=vae, text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )


def _present(folder: Path, file: str) -> Path:
    if not (folder / file).exists():
        raise CheckpointError(
            f"{folder} holds no pipeline: train the world with `python -m recipes.shapes_world`"
        )
    return folder
