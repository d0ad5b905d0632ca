"""Every number of the world's training recipe, in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from steer.tune.scorer.loop import Optimisation as StageRecipe


@dataclass(frozen=True)
class Recipe:
    """The whole recipe; `scaled` shortens every stage for a smoke run."""

    seed: int = 0
    scenes: int = 40_000
    vae: StageRecipe = field(default_factory=lambda: StageRecipe(2200, 32, 2.5e-3))
    clip: StageRecipe = field(default_factory=lambda: StageRecipe(4000, 64, 1e-3, warmup=100))
    denoiser: StageRecipe = field(
        default_factory=lambda: StageRecipe(6300, 64, 6e-4, warmup=200, ema=0.999)
    )
    turbo: StageRecipe = field(
        default_factory=lambda: StageRecipe(1500, 32, 3e-4, warmup=50, ema=0.99)
    )
    scorer: StageRecipe = field(
        default_factory=lambda: StageRecipe(280, 64, 3e-4, warmup=50, weight_decay=0.1, ema=0.99)
    )
    scorers: int = 2
    tiny: StageRecipe = field(default_factory=lambda: StageRecipe(2500, 24, 4e-3))
    tiny_captions: int = 160
    flow: StageRecipe = field(
        default_factory=lambda: StageRecipe(5000, 64, 1e-3, warmup=200, ema=0.999)
    )
    vqa_start: StageRecipe = field(default_factory=lambda: StageRecipe(400, 64, 3e-3, warmup=30))
    vqa: StageRecipe = field(default_factory=lambda: StageRecipe(300, 48, 1.5e-3, warmup=30))
    vqa_samples: int = 960
    vqa_renders: int = 4096
    preference_captions: int = 1536
    preference_images: int = 8

    def scaled(self, factor: float) -> Recipe:
        """The same recipe with `factor` times the steps and scenes (at least a few)."""
        plain = asdict(self)
        for name in (
            "vae",
            "clip",
            "denoiser",
            "scorer",
            "tiny",
            "flow",
            "turbo",
            "vqa_start",
            "vqa",
        ):
            stage: dict[str, Any] = plain[name]
            stage["steps"] = max(2, round(stage["steps"] * factor))
            stage["warmup"] = min(stage["warmup"], stage["steps"] // 2)
            plain[name] = StageRecipe(**stage)
        plain["scenes"] = max(128, round(self.scenes * factor))
        plain["tiny_captions"] = max(4, round(self.tiny_captions * factor))
        plain["vqa_samples"] = max(16, round(self.vqa_samples * factor))
        plain["vqa_renders"] = max(32, round(self.vqa_renders * factor))
        plain["preference_captions"] = max(8, round(self.preference_captions * factor))
        return Recipe(**plain)
