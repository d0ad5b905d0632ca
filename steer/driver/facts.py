"""Facts about a diffusers pipeline that other code asks for, each read in one place."""

from __future__ import annotations

from typing import Any


def makes_videos(pipe: Any) -> bool:
    """Whether the pipeline's outputs are videos."""
    return getattr(pipe, "video_processor", None) is not None
