"""What the world's second judge learns from: renders, and fresh samples of all three pipelines.

Nothing here was seen by the scorer, and nothing here is scored by it: captions and noise are of
other seeds, and what a picture shows is read by the oracle. Pictures that show a held-out
combination are left out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from recipes.shapes_world.recipe import Recipe
from steer.shapes.captions import caption
from steer.shapes.reading import Reading
from steer.shapes.scenes import RELATIONS, Group, Spec, is_held_out, relation_holds, sample_spec
from steer.shapes.worlds import World, pipeline


SHARD = 16
SAMPLED: tuple[tuple[World, int], ...] = (
    ("diffusion", 8),
    ("turbo", 4),
    ("diffusion", 8),
    ("turbo", 2),
    ("flow", 8),
    ("diffusion", 8),
)
"""World and steps of the shards, in turn."""
GUIDANCE = 3.5


def shows_held_out(reading: Reading) -> bool:
    """Whether a picture shows a combination that is kept out of training, relation included."""
    kinds = [(o.color, o.shape) for o in reading.objects]
    if not 1 <= len(kinds) <= 3 or any(c is None or s is None for c, s in kinds):
        return False
    if len(set(kinds)) == 1:
        return is_held_out(Spec((Group(len(kinds), str(kinds[0][0]), str(kinds[0][1])),)))
    if len(kinds) > 2:
        return False
    a, b = reading.objects
    held = [r for r in RELATIONS if relation_holds(r, b.x - a.x, b.y - a.y)]
    groups = tuple(Group(1, str(color), str(shape)) for color, shape in kinds)
    return is_held_out(Spec(groups, held[0] if held else None))


@torch.no_grad()
def _sample(pipe: Any, world: World, steps: int, texts: list[str], seed: int) -> Tensor:
    options: dict[str, Any] = {"max_sequence_length": 0} if world == "flow" else {}
    noise = torch.Generator().manual_seed(seed)
    out = pipe(
        texts,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        generator=noise,
        output_type="pt",
        **options,
    )
    return (out.images.cpu().float() * 255).round().to(torch.uint8)


def make_samples(recipe: Recipe, folder: Path, device: str) -> None:
    """Write shards of samples of training captions to `folder`; those that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    pipes: dict[World, Any] = {}
    for shard in tqdm(range(-(-recipe.vqa_samples // SHARD)), desc="samples"):
        path = folder / f"samples-{shard:04d}.safetensors"
        if path.exists():
            continue
        world, steps = SAMPLED[shard % len(SAMPLED)]
        if world not in pipes:
            pipes[world] = pipeline(world, device)
            pipes[world].set_progress_bar_config(disable=True)
        rng = np.random.default_rng([recipe.seed, 61, shard])
        texts = [caption(sample_spec(rng, "train"), rng) for _ in range(SHARD)]
        images = _sample(pipes[world], world, steps, texts, 7_000_000 + shard)
        partial = path.with_suffix(".part")
        save_file({"images": images}, partial)
        os.replace(partial, path)
