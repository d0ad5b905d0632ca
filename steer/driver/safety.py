"""The pipeline's own safety checker, asked about candidates as it is about what is returned."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from steer.driver.facts import execution_device


Check: TypeAlias = Callable[[Tensor], tuple[Tensor, list[bool]]]
"""Images `(B, 3, H, W)` or videos `(B, F, 3, H, W)` in [0, 1] to what the pipeline would return
for them, of the same shape, and whether it flagged each."""


def check_of(pipe: Any, output_type: str | None) -> Check | None:
    """What the pipeline does with decoded images before it returns them; None for nothing.

    The checkers of Stable Diffusion and its relatives black out images, DeepFloyd IF's also what it
    takes for watermarked, and Cosmos' guardrail refuses videos and blurs faces.

    Args:
        pipe: A diffusers pipeline.
        output_type: The call's; latents are not checked, nor are tensors of DeepFloyd IF, which
            returns no latents.
    """
    if getattr(pipe, "safety_checker", None) is None:
        return None
    if asks_guardrail(pipe):
        return None if output_type == "latent" else partial(_guarded, pipe)
    run = getattr(pipe, "run_safety_checker", None)
    if not callable(run) or set(inspect.signature(run).parameters) != {"image", "device", "dtype"}:
        return None
    if hasattr(pipe, "image_processor"):
        return None if output_type == "latent" else partial(_checked, pipe)
    return None if output_type == "pt" else partial(_checked_pixels, pipe)


def asks_guardrail(pipe: Any) -> bool:
    """Whether videos go through Cosmos' guardrail, which has frames of 8 bits.

    Cosmos 2.5 asks none but the genuine one.
    """
    guardrail = getattr(pipe, "safety_checker", None)
    if not hasattr(guardrail, "check_video_safety"):
        return False
    genuine = any(kind.__name__.startswith("Cosmos2_5") for kind in type(pipe).__mro__)
    return not genuine or type(guardrail).__name__ == "CosmosSafetyChecker"


def flags_of(output: Any, rows: int) -> list[bool]:
    """Which rows of a pipeline's output its checker flagged: its fields of one bool per row."""
    if isinstance(output, Mapping):
        fields = list(output.values())[1:]
    else:
        fields = output[1:] if isinstance(output, tuple) else ()
    found = [
        field
        for field in fields
        if isinstance(field, list)
        and len(field) == rows
        and all(isinstance(flag, bool) for flag in field)
    ]
    return [any(flags) for flags in zip(*found, strict=True)] if found else [False] * rows


def _run(pipe: Any, images: Any) -> tuple[Any, list[list[bool]]]:
    weight = next(pipe.safety_checker.parameters(), None)
    dtype = torch.float32 if weight is None else weight.dtype
    shown, *flags = pipe.run_safety_checker(images, execution_device(pipe), dtype)
    return shown, flags


def _checked(pipe: Any, images: Tensor) -> tuple[Tensor, list[bool]]:
    """Pipelines that check tensors in [-1, 1], and flag in them."""
    shown, flags = _run(pipe, images * 2 - 1)
    whole = [not flag for flag in flags[0]]
    shown = pipe.image_processor.postprocess(shown, output_type="pt", do_denormalize=whole)
    return _replaced(images, shown, flags)


def _checked_pixels(pipe: Any, images: Tensor) -> tuple[Tensor, list[bool]]:
    """DeepFloyd IF, which checks numpy arrays `(B, H, W, 3)` in [0, 1]."""
    shown, flags = _run(pipe, np.array(images.movedim(1, -1).cpu()))
    return _replaced(images, torch.from_numpy(shown).movedim(-1, 1), flags)


def _guarded(pipe: Any, images: Tensor) -> tuple[Tensor, list[bool]]:
    """Cosmos' guardrail, which checks 8-bit videos one by one and returns None for refused ones."""
    shown, flags = [], []
    pipe.safety_checker.to(execution_device(pipe))
    try:
        for video in images:
            frames = video[None] if video.ndim == 3 else video
            pixels = (frames.movedim(1, -1).cpu().numpy() * 255).astype(np.uint8)
            safe = pipe.safety_checker.check_video_safety(pixels)
            flags.append(safe is None)
            safe = np.zeros_like(pixels) if safe is None else safe
            shown.append(torch.from_numpy(safe).movedim(-1, 1).view_as(frames).view_as(video) / 255)
    finally:
        pipe.safety_checker.to("cpu")
    return torch.stack(shown).to(images), flags


def _replaced(images: Tensor, shown: Tensor, flags: list[list[bool]]) -> tuple[Tensor, list[bool]]:
    """Images with the flagged ones as the pipeline shows them."""
    flagged = [any(row) for row in zip(*flags, strict=True)]
    if any(flagged):
        where = torch.tensor(flagged, device=images.device).view(-1, *(1,) * (images.ndim - 1))
        images = torch.where(where, shown.to(images), images)
    return images, flagged
