"""The scenes that training sees: train-split combinations only, rendered once per stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from steer.shapes.captions import caption
from steer.shapes.drawing import place, render, render_labels
from steer.shapes.scenes import Scene, Spec, sample_spec


@dataclass
class Pool:
    """Rendered scenes.

    Attributes:
        specs: What each scene was drawn from.
        scenes: Their geometry.
        images: `(N, 3, 64, 64)` uint8.
        labels: `(N, 64, 64)` uint8, see `render_labels`; empty unless asked for.
    """

    specs: list[Spec]
    scenes: list[Scene]
    images: Tensor
    labels: Tensor

    def batch(self, rows: np.ndarray, device: torch.device | str) -> Tensor:
        """Images of these rows, float in [0, 1]."""
        return self.images[torch.from_numpy(rows)].to(device).float() / 255

    def captions(self, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
        """A random paraphrase of each row's caption."""
        return [caption(self.specs[row], rng) for row in rows]


def make_specs(count: int, seed: int) -> list[Spec]:
    """The specs of the pool, without their pictures."""
    rng = np.random.default_rng([seed, 17])
    return [sample_spec(rng, "train") for _ in range(count)]


def make_pool(count: int, seed: int, *, labels: bool = False, chunk: int = 512) -> Pool:
    """Draw `count` train-split scenes from `seed` and render them."""
    specs = make_specs(count, seed)
    rng = np.random.default_rng([seed, 19])
    scenes = [place(spec, rng) for spec in tqdm(specs, desc="scenes", leave=False)]
    images = torch.empty(count, 3, 64, 64, dtype=torch.uint8)
    masks = torch.empty(count if labels else 0, 64, 64, dtype=torch.uint8)
    for i in range(0, count, chunk):
        part = scenes[i : i + chunk]
        images[i : i + chunk] = (render(part) * 255).round().to(torch.uint8)
        if labels:
            masks[i : i + chunk] = render_labels(part).to(torch.uint8)
    return Pool(specs, scenes, images, masks)
