"""Properties of a diffusers pipeline that are not in its public interface, each read here only."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import nn


_JUMPS = ("r_timestep",)


def execution_device(pipe: Any, default: Any = "cpu") -> torch.device:
    """Where the pipeline computes, which under offloading is not where its weights are."""
    return named_device(pipe) or torch.device(default)


def named_device(pipe: Any) -> torch.device | None:
    """Where the pipeline says that it computes; all of diffusers' own do, others None.

    They look for it through all modules of the pipeline: ask once.
    """
    found = getattr(pipe, "_execution_device", None)
    return None if found is None else torch.device(found)


def is_modular(pipe: Any) -> bool:
    """Whether this is a `ModularPipeline`; other pipelines have no components to update."""
    return hasattr(type(pipe), "update_components")


def makes_videos(pipe: Any) -> bool:
    """Whether the pipeline's outputs are videos."""
    return getattr(pipe, "video_processor", None) is not None


def uses_guidance(pipe: Any) -> bool:
    """Whether the running call batches the null prompt with the prompt (CFG)."""
    return bool(getattr(pipe, "do_classifier_free_guidance", False))


def guidance_rows(pipe: Any) -> int:
    """Denoiser rows per latent in the running call."""
    known = getattr(pipe, "guidance_rows", None)  # a modular pipeline's guider may have several
    return known or (2 if uses_guidance(pipe) else 1)


def guidance_scale(pipe: Any, given: Mapping[str, Any]) -> float:
    """Scale of classifier-free guidance in the running call, which has it.

    Args:
        pipe: The pipeline.
        given: The call's arguments; `true_cfg_scale` stands there beside a scale that the model
            embeds.

    Returns:
        The usual 7.5 where neither tells.
    """
    own = given.get("true_cfg_scale", getattr(pipe, "guidance_scale", None))
    found = given.get("guidance_scale") if own is None else own
    return float(found) if isinstance(found, int | float) else 7.5


def is_interrupted(pipe: Any) -> bool:
    """Whether somebody told the pipeline to stop (`pipe._interrupt = True`)."""
    return bool(getattr(pipe, "_interrupt", False))


def edits_latents(pipe: Any) -> bool:
    """Whether the pipeline's loop puts a given image, noised or clean, into the latents.

    Noised ones are read off the names that its `__call__` uses.
    """
    if keeps_image(pipe):
        return True
    return any({"add_noise", "scale_noise"} & names_in(kind) for kind in loop_classes(pipe))


def loop_classes(pipe: Any) -> tuple[type, ...]:
    """Classes whose `__call__` is the pipeline's loop: its own, or those of modular blocks."""
    return getattr(pipe, "loop_classes", (type(pipe),))


def names_in(kind: type) -> set[str]:
    """The names that the `__call__` of a class uses."""
    code = getattr(inspect.unwrap(kind.__call__), "__code__", None)
    return set(getattr(code, "co_names", ()))


def keeps_image(pipe: Any) -> bool:
    """Whether the loop puts back, clean, what it had outside a mask (DeepFloyd IF inpainting)."""
    return any(kind.__name__.startswith("IFInpainting") for kind in type(pipe).__mro__)


def parts(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's torch modules by attribute name: denoiser, VAE, text encoders, ..."""
    return {name: part for name, part in vars(pipe).items() if isinstance(part, nn.Module)}


def first_denoiser(pipe: Any) -> tuple[str, Any] | None:
    """`("unet" or "transformer", module)`; None where the pipeline has neither."""
    for name in ("unet", "transformer"):
        module = getattr(pipe, name, None)
        if module is not None:
            return name, module
    return None


def jump_argument(pipe: Any) -> str | None:
    """The denoiser's argument for the timestep that it jumps to; None where it is no flow map."""
    found = first_denoiser(pipe)
    return None if found is None else _jump_argument(type(found[1]))


@lru_cache
def _jump_argument(denoiser: type) -> str | None:
    forward = getattr(denoiser, "forward", None)
    given = () if forward is None else inspect.signature(forward).parameters
    return next((name for name in _JUMPS if name in given), None)


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """The pipeline without its progress bar for a while; its settings are put back."""
    if not hasattr(pipe, "set_progress_bar_config"):
        yield
        return
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
