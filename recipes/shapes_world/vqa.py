"""Stage 9: a second judge of another kind, a residual detector that learns what pictures show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from recipes.shapes_world.clip import augment
from recipes.shapes_world.recipe import Recipe, StageRecipe
from recipes.shapes_world.stage import share, train
from recipes.shapes_world.vqa_data import shows_held_out
from steer.shapes.detector import CELL, CELLS, MOST, Detector, Seen
from steer.shapes.drawing import place, render
from steer.shapes.oracle import MAX_SPECKLE
from steer.shapes.reading import Found, Reading, read
from steer.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZE_THRESHOLD,
    Scene,
    sample_spec,
)


SHIFT = 2
"""Pixels that samples are moved by at most: no relation changes."""
NEAR = 1
"""Cells around an object's centre that learn its kind and place too."""
SAMPLES = 0.6
"""Their share of a batch; the rest are renders."""
TINT = 0.03
"""How much brighter or darker each channel may be made."""
BAND = 1.0
"""Pixels about `SIZE_THRESHOLD` where the oracle takes either size."""


@dataclass(frozen=True)
class Truth:
    """What B pictures show: a row for every object, and one for every picture.

    Attributes:
        row: `(O,)`, the picture of every object.
        color, shape: `(O,)`, class numbers; the last class is "unclear".
        place: `(O, 2)`, x and y in pixels; diameter: `(O,)`, pixels.
        count: `(B,)`, how many objects, at most `MOST`.
        ground: `(B,)`, background number; the last one is "unclear".
        tidy: `(B,)`, 1 where specks are within the oracle's bounds.
    """

    row: Tensor
    color: Tensor
    shape: Tensor
    place: Tensor
    diameter: Tensor
    count: Tensor
    ground: Tensor
    tidy: Tensor

    def to(self, device: torch.device) -> Truth:
        """The same on a device."""
        return Truth(**{name: part.to(device) for name, part in vars(self).items()})


def _number(name: str | None, names: Sequence[str]) -> int:
    return len(names) if name is None else list(names).index(name)


def of_readings(readings: Sequence[Reading]) -> Truth:
    """The targets that the oracle reads in pictures."""
    objects = [(i, o) for i, reading in enumerate(readings) for o in reading.objects]
    return Truth(
        torch.tensor([i for i, _ in objects], dtype=torch.long),
        torch.tensor([_number(o.color, list(COLORS)) for _, o in objects], dtype=torch.long),
        torch.tensor([_number(o.shape, SHAPES) for _, o in objects], dtype=torch.long),
        torch.tensor([(o.x, o.y) for _, o in objects], dtype=torch.float32).reshape(-1, 2),
        torch.tensor([o.diameter for _, o in objects], dtype=torch.float32),
        torch.tensor([min(r.count, MOST) for r in readings]),
        torch.tensor([_number(r.background, list(BACKGROUNDS)) for r in readings]),
        torch.tensor([float(r.speckle <= MAX_SPECKLE) for r in readings]),
    )


def _as_reading(scene: Scene) -> Reading:
    objects = [Found(s.color, s.kind, s.x, s.y, s.diameter, 1.0, 0.0) for s in scene.shapes]
    return Reading(tuple(objects), len(objects), scene.background, 0, 0.0)


def loss_of(seen: Seen, truth: Truth) -> tuple[Tensor, dict[str, float]]:
    """Centres, kinds and places cell by cell; counts and background picture by picture."""
    own, row, obj = _cells_of(truth)
    here = torch.zeros_like(seen.centers)
    central = own[obj_first(obj)]
    here[truth.row, central] = 1.0
    centers = seen.centers.clamp(1e-6, 1 - 1e-6)
    kinds = torch.zeros(len(here), len(COLORS) + 1, len(SHAPES) + 1, device=here.device)
    one = torch.ones(len(truth.row), device=here.device)
    kinds.index_put_((truth.row, truth.color, truth.shape), one, accumulate=True)
    wanted = kinds[:, :-1, :-1].long().clamp(max=MOST)
    counted = seen.counts(seen.kinds()).gather(-1, wanted[..., None])
    total = seen.counts(seen.centers.sum(1))
    sure = (truth.diameter - SIZE_THRESHOLD).abs() > BAND
    size = F.binary_cross_entropy_with_logits(
        seen.large[row, own], (truth.diameter > SIZE_THRESHOLD).float()[obj], reduction="none"
    )
    parts = {
        "center": F.binary_cross_entropy(centers, here, reduction="none").sum(1).mean(),
        "color": F.nll_loss(seen.colors[row, own], truth.color[obj]),
        "shape": 2 * F.nll_loss(seen.shapes[row, own], truth.shape[obj]),
        "size": size[sure[obj]].mean(),
        "place": 0.2 * (seen.places[row, own] - truth.place[obj]).abs().mean(),
        "kinds": -0.5 * counted.sum((1, 2, 3)).mean(),
        "count": 0.5 * F.nll_loss(total, truth.count),
        "ground": F.nll_loss(seen.ground, truth.ground),
        "tidy": F.binary_cross_entropy_with_logits(seen.tidy, truth.tidy),
    }
    total_right = (total.argmax(1) == truth.count).float().mean()
    return torch.stack(list(parts.values())).sum(), {
        **{name: float(part.detach()) for name, part in parts.items()},
        "counted": float(total_right),
    }


def obj_first(obj: Tensor) -> Tensor:
    """Where each object's own cell is in what `_cells_of` returns: its first."""
    return torch.nonzero(torch.diff(obj, prepend=obj.new_full((1,), -1)))[:, 0]


def _cells_of(truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
    """The cells at and around each object's centre, its own one first; their picture and object."""
    steps = [(0, 0)] + [
        (i, j) for i in range(-NEAR, NEAR + 1) for j in range(-NEAR, NEAR + 1) if i or j
    ]
    at = (truth.place / CELL).long().clamp(0, CELLS - 1)
    around = at[:, None] + torch.tensor(steps, device=at.device)
    inside = ((around >= 0) & (around < CELLS)).all(-1)
    cells = around[..., 1] * CELLS + around[..., 0]
    obj = torch.arange(len(at), device=at.device)[:, None].expand_as(cells)[inside]
    return cells[inside], truth.row[obj], obj


def shifted(images: Tensor, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
    """Images `(B, 3, H, W)` each moved by up to `SHIFT` pixels, edges repeated; and by how much."""
    moves = rng.integers(-SHIFT, SHIFT + 1, (len(images), 2))
    padded = F.pad(images, (SHIFT,) * 4, mode="replicate")
    size = images.shape[-1]
    parts = [
        padded[i, :, SHIFT - dy : SHIFT - dy + size, SHIFT - dx : SHIFT - dx + size]
        for i, (dx, dy) in enumerate(moves.tolist())
    ]
    return torch.stack(parts), moves


def _moved(reading: Reading, dx: int, dy: int) -> Reading:
    def move(o: Found) -> Found:
        return Found(o.color, o.shape, o.x + dx, o.y + dy, o.diameter, o.fit, o.spread)

    objects = tuple(move(o) for o in reading.objects)
    return Reading(objects, reading.count, reading.background, reading.speckle, reading.spread)


@dataclass(frozen=True)
class Pool:
    """Pictures `(N, 3, 64, 64)` uint8, what each shows, and whether to soften and roughen them."""

    images: Tensor
    readings: Sequence[Reading]
    augmented: bool

    def draw(
        self, size: int, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, list[Reading]]:
        """Pictures of random rows, float in [0, 1], and what they show."""
        rows = rng.integers(len(self.images), size=size)
        pictures = self.images[torch.from_numpy(rows)].float() / 255
        pictures = augment(pictures, rng, noise) if self.augmented else pictures
        return pictures, [self.readings[i] for i in rows]


def load_samples(folder: Path) -> Pool:
    """All samples that show nothing held out."""
    paths = sorted(folder.glob("samples-*.safetensors"))
    images = torch.cat([load_file(path)["images"] for path in paths])
    readings = [r for part in tqdm(images.split(64), desc="oracle") for r in read(part)]
    kept = [i for i, reading in enumerate(readings) if not shows_held_out(reading)]
    return Pool(images[kept], [readings[i] for i in kept], augmented=False)


def make_renders(count: int, seed: int) -> Pool:
    """Rendered training scenes, of seeds that no other stage uses."""
    rng = np.random.default_rng([seed, 67])
    scenes = [place(sample_spec(rng, "train"), rng) for _ in tqdm(range(count), desc="scenes")]
    parts = [scenes[i : i + 256] for i in range(0, count, 256)]
    images = torch.cat([(render(part) * 255).round().to(torch.uint8) for part in parts])
    return Pool(images, [_as_reading(scene) for scene in scenes], augmented=True)


def start_vqa(recipe: Recipe, folder: Path, device: str) -> Detector:
    """Train the detector on renders alone."""
    torch.manual_seed(recipe.seed)
    model = Detector().to(device)
    model.to(memory_format=torch.channels_last)  # pyright: ignore
    pools = [(make_renders(recipe.vqa_renders, recipe.seed), 1.0)]
    _train("vqa-renders", model, pools, recipe.vqa_start, recipe, folder)
    return model


def finish_vqa(model: Detector, recipe: Recipe, folder: Path) -> None:
    """Train it further on renders and on the samples in `folder / "samples"`."""
    renders = make_renders(recipe.vqa_renders, recipe.seed)
    pools = [(load_samples(folder / "samples"), SAMPLES), (renders, 1 - SAMPLES)]
    _train("vqa-samples", model, pools, recipe.vqa, recipe, folder)


def _train(
    name: str,
    model: Detector,
    pools: Sequence[tuple[Pool, float]],
    plan: StageRecipe,
    recipe: Recipe,
    folder: Path,
) -> None:
    size, device = share(plan), next(model.parameters()).device

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn = [pool.draw(round(part * size), rng, noise) for pool, part in pools]
        pictures, moves = shifted(torch.cat([images for images, _ in drawn]), rng)
        shown = [reading for _, readings in drawn for reading in readings]
        truth = of_readings([_moved(r, *m) for r, m in zip(shown, moves.tolist(), strict=True)])
        gain = 1 + TINT * (2 * torch.rand(len(pictures), 3, 1, 1, generator=noise) - 1)
        pixels = (pictures * gain).clamp(0, 1).to(device, memory_format=torch.channels_last)
        return loss_of(model(pixels), truth.to(device))

    train(name, model, loss, plan, folder, recipe.seed)


def write_detector(model: Detector, path: Path) -> None:
    """Its weights in float16, as `steer.shapes.detector.load_detector` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: (v.half() if v.is_floating_point() else v).cpu().contiguous()
        for k, v in model.state_dict().items()
    }
    partial = path.with_suffix(".part")
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, path)
