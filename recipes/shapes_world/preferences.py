"""Stage 4: the pipeline's own samples, judged by a simulated crowd.

Each caption gets a group of images; the oracle's correctness and the model-free neatness give each
a utility, and simulated annotators choose between two images by that utility plus Gumbel noise. A
training group is also asked about under the captions that describe its images.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from recipes.shapes_world.describe import describe
from recipes.shapes_world.recipe import Recipe
from recipes.shapes_world.stage import rank, world_size
from steer.shapes.captions import caption, parse
from steer.shapes.oracle import judge, neatness
from steer.shapes.reading import Reading, read
from steer.shapes.scenes import Split, sample_spec


SHARD = 16
BATCH = 16
STEPS = (8, 12, 20)
GUIDANCE = (2.0, 3.5, 5.0)
"""Samples of unequal quality teach more than samples of equal quality."""
ANNOTATORS, NOISE = 5, 0.35


def utility(fraction: Tensor, correct: Tensor, neat: Tensor) -> Tensor:
    """What the simulated annotators look for: correctness first, then neatness; same shapes."""
    return 2.0 * fraction + 1.0 * correct + 0.5 * neat


def votes(first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
    """Share of `ANNOTATORS` that prefer the image of utility `first` over `second`, same shape."""
    uniform = torch.rand(ANNOTATORS, *first.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    logistic = torch.log(uniform) - torch.log1p(-uniform)  # difference of two Gumbels
    return ((first - second) / NOISE + logistic > 0).float().mean(0)


@torch.no_grad()
def _sample(pipe: StableDiffusionPipeline, texts: list[str], count: int, seed: int) -> Tensor:
    steps, guidance = STEPS[seed % len(STEPS)], GUIDANCE[(seed // len(STEPS)) % len(GUIDANCE)]
    repeated = [text for text in texts for _ in range(count)]
    noise = torch.Generator().manual_seed(seed)
    parts: list[Tensor] = []
    for i in range(0, len(repeated), BATCH):
        with torch.autocast(pipe.device.type, torch.bfloat16):
            out = pipe(
                repeated[i : i + BATCH],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=noise,
                output_type="pt",
            )
        parts.append(out.images.cpu().float())  # pyright: ignore
    return torch.cat(parts)


def questions(
    texts: list[str], readings: list[list[Reading]], rng: np.random.Generator | None
) -> tuple[list[str], list[int]]:
    """Captions to ask about, and the group of each: its own, then those describing its images.

    Args:
        texts: The caption that each group was made from.
        readings: What each group's images show.
        rng: Draws the descriptions; without it there are none.
    """
    asked, groups = list(texts), list(range(len(texts)))
    for group, shown in enumerate(readings):
        specs = [describe(reading, rng) for reading in shown] if rng else []
        new = [caption(spec, rng) for spec in dict.fromkeys(specs) if spec is not None]
        asked += new
        groups += [group] * len(new)
    return asked, groups


def _write_shard(
    path: Path, texts: list[str], images: Tensor, rng: np.random.Generator | None
) -> None:
    images = (images * 255).round().to(torch.uint8)
    every = iter(read(images))
    size = len(images) // len(texts)
    readings = [[next(every) for _ in range(size)] for _ in texts]
    asked, groups = questions(texts, readings, rng)
    verdicts = [
        [judge(reading, parse(text)) for reading in readings[group]]
        for text, group in zip(asked, groups, strict=True)
    ]
    tensors = {
        "images": images.unflatten(0, (len(texts), size)),
        "neat": torch.from_numpy(neatness(images)).float().unflatten(0, (len(texts), size)),
        "group": torch.tensor(groups),
        "fraction": torch.tensor([[v.fraction for v in row] for row in verdicts]),
        "correct": torch.tensor([[float(v.all_met) for v in row] for row in verdicts]),
    }
    partial = path.with_suffix(".part")
    save_file(tensors, partial, metadata={"captions": json.dumps(asked)})
    os.replace(partial, path)


def make_preferences(
    pipe: StableDiffusionPipeline, recipe: Recipe, folder: Path, split: Split, captions: int
) -> None:
    """Write shards of `SHARD` captions x `recipe.preference_images` judged images to `folder`.

    Shards that exist are kept; under torchrun each process makes its share.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipe.set_progress_bar_config(disable=True)
    shards = range(rank(), -(-captions // SHARD), world_size())
    for shard in tqdm(shards, desc=f"{split} samples", disable=rank() != 0):
        path = folder / f"{split}-{shard:04d}.safetensors"
        if path.exists():
            continue
        rng = np.random.default_rng([recipe.seed, 31, shard, split == "held_out"])
        wording = None if split == "held_out" else rng
        texts = [caption(sample_spec(rng, split), wording) for _ in range(SHARD)]
        images = _sample(pipe, texts, recipe.preference_images, shard)
        _write_shard(path, texts, images, wording)


def load_preferences(folder: Path, split: Split) -> tuple[list[str], dict[str, Tensor]]:
    """All shards of a split: the captions asked about, and what was judged.

    Returns:
        Q captions; and `images` `(groups, images, 3, 64, 64)` uint8, `neat` `(groups, images)`,
        `group` `(Q,)` int64, `fraction` and `correct` `(Q, images)`.

    Raises:
        FileNotFoundError: There are no shards.
    """
    texts: list[str] = []
    parts: list[dict[str, Tensor]] = []
    groups = 0
    for path in sorted(folder.glob(f"{split}-*.safetensors")):
        with safe_open(path, "pt") as file:
            texts += json.loads(file.metadata()["captions"])
        part = load_file(path)
        parts.append(part | {"group": part["group"] + groups})
        groups += len(part["images"])
    if not parts:
        raise FileNotFoundError(f"no {split} samples in {folder}: run the stage 'preferences'")
    return texts, {key: torch.cat([p[key] for p in parts]) for key in parts[0]}
