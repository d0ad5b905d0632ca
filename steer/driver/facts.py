"""Facts about a diffusers pipeline that other code asks for, each read in one place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def execution_device(pipe: Any, default: Any = "cpu") -> torch.device:
    """Where the pipeline computes, which under offloading is not where its weights are."""
    return torch.device(getattr(pipe, "_execution_device", None) or default)


def makes_videos(pipe: Any) -> bool:
    """Whether the pipeline's outputs are videos."""
    return getattr(pipe, "video_processor", None) is not None


def uses_guidance(pipe: Any) -> bool:
    """Whether the running call batches the null prompt with the prompt (CFG)."""
    return bool(getattr(pipe, "do_classifier_free_guidance", False))


def is_interrupted(pipe: Any) -> bool:
    """Whether somebody told the pipeline to stop (`pipe._interrupt = True`)."""
    return bool(getattr(pipe, "_interrupt", False))


def parts(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's modules by name, without what its configuration only mentions."""
    return {name: part for name, part in vars(pipe).items() if isinstance(part, nn.Module)}
