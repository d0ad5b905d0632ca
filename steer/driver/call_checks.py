"""What a pipeline is asked for, checked before it is called: counts, steps, prompts, generators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from steer.core.errors import AGAIN, UnsupportedPipelineError


_COUNTED = ("num_inference_steps", "prior_num_inference_steps", "height", "width", "num_frames")


def check_values(given: Mapping[str, Any], count: str | None) -> None:
    """Raise ValueError for an argument of the call that no pipeline could use.

    Args:
        given: Arguments by name, as the user gave them.
        count: What the pipeline calls the number of images per prompt.
    """
    for name in (count, *_COUNTED):
        value = given.get(name) if name else None
        if value is None and (name != count or name not in given):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be a whole number, at least 1")
    without = all(
        given.get(name) is None for name in ("num_inference_steps", "timesteps", "sigmas")
    )
    if "num_inference_steps" in given and without:
        raise ValueError("num_inference_steps=None: give a number, or timesteps= or sigmas=")
    _check_prompt(given.get("prompt"))
    _check_generator(given.get("generator"))


def _check_prompt(prompt: Any) -> None:
    if prompt is None or isinstance(prompt, str):
        return
    if isinstance(prompt, list | tuple):
        if prompt and all(isinstance(text, str) for text in prompt):
            return
        raise ValueError(f"prompt={prompt!r}: must be a text, or a list of texts, one at least")
    if isinstance(prompt, int | float | bytes):
        raise ValueError(f"prompt={prompt!r}: must be a text, or a list of texts")


def _check_generator(generator: Any) -> None:
    several = list(generator) if isinstance(generator, list | tuple) else [generator]
    good = [one is None or isinstance(one, torch.Generator) for one in several]
    if not good or not all(good):
        raise ValueError(
            f"generator={generator!r}: must be a torch.Generator, such as "
            "torch.Generator().manual_seed(0), or a list of them, one per prompt"
        )


def check_pipeline(pipe: Any) -> None:
    """Raise UnsupportedPipelineError unless `pipe` is callable."""
    if callable(pipe):
        return
    raise UnsupportedPipelineError(
        f"pipe={type(pipe).__name__}: is not callable; pass a diffusers pipeline such as "
        "StableDiffusionPipeline.from_pretrained(...)"
    )


def check_scheduler(pipe: Any) -> None:
    """Raise UnsupportedPipelineError unless the pipeline has a scheduler that can be stepped."""
    scheduler = getattr(pipe, "scheduler", None)
    if all(hasattr(scheduler, name) for name in ("step", "set_timesteps")):
        return
    raise UnsupportedPipelineError(
        f"{type(pipe).__name__}: has no scheduler with step and set_timesteps, so its loop cannot "
        f"be driven; {AGAIN}"
    )


def check_loop(pipe: Any) -> None:
    """Raise UnsupportedPipelineError where it is seen before the call that no search can sit in."""
    why = getattr(pipe, "undriven", None)
    if why is not None:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__}: its loop cannot be driven ({why}); {AGAIN}"
        )
