"""What a call asked of its pipeline, where the decoder has to know it: sizes, frames, chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Asked:
    """The arguments of one call, and those that the pipeline made of them.

    Attributes:
        call: Arguments of the pipeline's call by name, its defaults included; may be empty.
        prepared: Arguments that the call gave `pipe.prepare_latents`: the sizes that the latents
            were made for, as the pipeline rounds and defaults them; may be empty.
    """

    call: Mapping[str, Any] = field(default_factory=dict)
    prepared: Mapping[str, Any] = field(default_factory=dict)

    def named(self, name: str, default: Any = None) -> Any:
        """An argument, as the pipeline used it; `default` where it is not known or `None`."""
        for given in (self.prepared, self.call):
            if given.get(name) is not None:
                return given[name]
        return default

    def size(self, pipe: Any) -> tuple[int, int]:
        """Height and width in pixels that the latents were made for; 0 where nothing tells."""
        side = getattr(pipe, "default_sample_size", None) or 0
        default = side * (getattr(pipe, "vae_scale_factor", None) or 0)
        height = getattr(pipe, "default_height", None) or default
        width = getattr(pipe, "default_width", None) or default
        return self.named("height", height), self.named("width", width)

    def latent_frames(self, pipe: Any, default: int = 0) -> int:
        """Frames of the latents that the call's `num_frames` takes; `default` if not known."""
        config = getattr(getattr(pipe, "transformer", None), "config", None)
        frames = self.call.get("num_frames") or getattr(config, "sample_frames", None)
        return _latent_frames(pipe, frames) or default

    def prepared_frames(self, pipe: Any) -> int:
        """Frames of the latents that the pipeline prepared; 0 where nothing tells."""
        return _latent_frames(pipe, self.prepared.get("num_frames"))


def _latent_frames(pipe: Any, frames: int | None) -> int:
    names = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
    step = next((getattr(pipe, name) for name in names if hasattr(pipe, name)), 0)
    return (frames - 1) // step + 1 if frames and step else 0
