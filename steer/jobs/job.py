"""What a run is asked to do; known without importing torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from steer.core.files.atomic import plain
from steer.methods.text import Written, is_bare


@dataclass(frozen=True)
class Job:
    """The arguments of a run: equal jobs give equal images. Bad values raise ValueError.

    Attributes:
        prompts: What to draw.
        pipeline: `"shapes"`, a folder that `save_pretrained` wrote, or a hub id.
        reward: A reward's name, or weights as in `"hpsv2=0.7,clip:ViT-B-32:openai=0.3"`.
        compute: Denoiser rows in plain calls; 4 when left out, but for a method written out,
            which has its own.
        method: As in `"Prune(start=8, keep=(4, 2), at=(0.25, 0.5))"`, or as YAML has it,
            `{"Prune": {"start": 8}}`; None is the default.
        judge: A held-out reward to report beside the optimised one.
        steps: Denoising steps; None is the pipeline's own default.
        guidance_scale: None is the pipeline's own default.
        seed: Prompt k is drawn with the seed `seed + k`.
        images_per_prompt: How many winners per prompt.
        device: `"auto"` or a torch device.
        dtype: `"auto"`, `"float32"`, `"float16"` or `"bfloat16"`.
        width: Latents per denoiser call; None is the pipeline's own batch.
        base: Also draw the plain call's image, for comparison; the untuned pipeline's.
        tuned: A tuned checkpoint: a name of `steer tuned`, a hub id, a path.
        blend: How it combines with the pipeline's own denoiser, as in `"RLG(2.0)"`.
    """

    prompts: tuple[str, ...]
    pipeline: str = "shapes"
    reward: str = "shapes"
    compute: float | None = None
    method: Written | None = None
    judge: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    images_per_prompt: int = 1
    device: str = "auto"
    dtype: str = "auto"
    width: int | None = None
    base: bool = True
    tuned: str | None = None
    blend: str | None = None

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ValueError(
                f"prompts={list(self.prompts)!r}: give at least one, none of them empty"
            )
        if self.compute is None and (self.method is None or is_bare(self.method)):
            object.__setattr__(self, "compute", 4.0)
        if self.compute is not None and self.method is not None and not is_bare(self.method):
            raise ValueError(
                f"compute={self.compute:g} with method={self.method!r}: a method written out has "
                "its own cost; leave one of them out"
            )
        if self.compute is not None and not 1 <= self.compute < math.inf:
            raise ValueError(
                f"compute={self.compute:g}: a plain call is 1; give 1 or more (for example 4)"
            )
        for name in ("steps", "images_per_prompt", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must not be negative")

    def to_dict(self) -> dict[str, Any]:
        """The arguments by name, JSON-ready."""
        return plain(asdict(self))
