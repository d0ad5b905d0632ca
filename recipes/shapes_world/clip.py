"""Stage 2: a genuine open_clip ViT, trained contrastively with hard negatives.

Two auxiliary heads ride along and are thrown away: what covers each patch, and the inventory of the
picture or caption. Without them a ViT this small spends most of its budget finding out that objects
exist.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from recipes.shapes_world.data import Pool
from recipes.shapes_world.inventory import InventoryHead, of_scenes, of_specs
from recipes.shapes_world.recipe import Recipe
from recipes.shapes_world.stage import share, train
from recipes.shapes_world.text import CONTEXT_LENGTH, Encoder
from steer.shapes.captions import caption
from steer.shapes.drawing import place, render, render_labels
from steer.shapes.scenes import COLORS, SHAPES, Scene, Spec, is_true_of, perturb


PATCH = 8
LABELS = 1 + len(COLORS) * len(SHAPES)
INVENTORY_WEIGHT = 0.5
PREPROCESS: dict[str, Any] = {
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def model_config(vocabulary: int) -> dict[str, Any]:
    """The open_clip model configuration of the world's towers."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 64,
            "layers": 6,
            "width": 128,
            "head_width": 32,
            "patch_size": PATCH,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocabulary,
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def build(vocabulary: int) -> open_clip.CLIP:
    """The untrained open_clip model."""
    return open_clip.CLIP(**model_config(vocabulary))


def normalise_pixels(images: Tensor) -> Tensor:
    """[0, 1] images as the towers see them: mean and std 0.5."""
    return (images - 0.5) / 0.5


def augment(images: Tensor, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Soften and roughen half of the batches: generated pictures are not renders."""
    if rng.random() < 0.5:
        return images
    if rng.random() < 0.5:
        images = gaussian_blur(images, [5, 5], [float(rng.uniform(0.3, 1.0))])
    strength = float(rng.uniform(0, 0.08))
    return images + strength * torch.randn(images.shape, generator=noise).to(images.device)


def truth_table(specs: list[Spec], scenes: list[Scene]) -> Tensor:
    """`(scenes, specs)` bool: which caption is true of which scene, by geometry."""
    by_kinds: dict[tuple[tuple[str, str], ...], list[int]] = defaultdict(list)
    for column, spec in enumerate(specs):
        kinds = [(g.color, g.shape) for g in spec.groups for _ in range(g.count)]
        by_kinds[tuple(sorted(kinds))].append(column)
    table = torch.zeros(len(scenes), len(specs), dtype=torch.bool)
    for row, scene in enumerate(scenes):
        for column in by_kinds.get(tuple(sorted(scene.kinds)), ()):
            table[row, column] = is_true_of(specs[column], scene)
    return table


def contrastive_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Symmetric InfoNCE over N images and M >= N captions `(N, M)`; caption n belongs to image n.

    Captions that happen to be true of an image are no negatives of it (`truth` masks them out).
    """
    n = logits.shape[0]
    target = torch.arange(n, device=logits.device)
    own = F.one_hot(target, logits.shape[1]).bool()
    masked = logits.masked_fill(truth & ~own, float("-inf"))
    return (F.cross_entropy(masked, target) + F.cross_entropy(masked[:, :n].T, target)) / 2


def twin_loss(logits: Tensor) -> Tensor:
    """Each image against its twin's caption and its own false one, each caption against the twin.

    Rows n and n + N/2 are twins: scenes that differ in one aspect, each false of the other's
    caption. Columns are the N captions, then one false caption per image.
    """
    n = logits.shape[0]
    index = torch.arange(n, device=logits.device)
    twin = index.roll(n // 2)
    zero = torch.zeros(n, dtype=torch.long, device=logits.device)
    texts = torch.stack([logits[index, index], logits[index, twin], logits[index, index + n]], 1)
    images = torch.stack([logits[index, index], logits[twin, index]], 1)
    return (F.cross_entropy(texts, zero) + F.cross_entropy(images, zero)) / 2


def dense_target(labels: Tensor) -> Tensor:
    """`(B, 64, 64)` labels to the label distribution of each patch, `(B, patches, LABELS)`."""
    hot = F.one_hot(labels.long(), LABELS).float().movedim(-1, 1)
    return F.avg_pool2d(hot, PATCH).flatten(2).transpose(1, 2)


class ClipTrainer(nn.Module):
    """The open_clip model and the auxiliary head that only training uses."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.clip = build(vocabulary)
        self.dense = nn.Linear(128, LABELS)
        self.inventory = InventoryHead(128)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, patch labels, and the two towers' embeddings before normalisation."""
        tower: Any = self.clip.visual
        tower.output_tokens = True
        pooled, tokens = tower(normalise_pixels(images))
        tower.output_tokens = False
        text = self.clip.encode_text(ids)
        scale = self.clip.logit_scale.exp().clamp(max=100)
        unit = F.normalize(pooled.float(), dim=-1), F.normalize(text.float(), dim=-1)
        return scale * unit[0] @ unit[1].T, self.dense(tokens).float(), pooled, text


def train_clip(
    pool: Pool, encode: Encoder, vocabulary: int, recipe: Recipe, folder: Path, device: str
) -> open_clip.CLIP:
    """Train on renders and their twins, which differ in one aspect, with a false caption each."""
    model = ClipTrainer(vocabulary).to(device)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = rng.integers(len(pool.specs), size=share(recipe.clip) // 2)
        specs = [pool.specs[i] for i in rows]
        specs += [perturb(spec, rng) for spec in specs]
        scenes = [pool.scenes[i] for i in rows] + [place(s, rng) for s in specs[len(rows) :]]
        wrong = [perturb(spec, rng) for spec in specs]
        texts = [caption(spec, rng) for spec in [*specs, *wrong]]
        truth = truth_table([*specs, *wrong], scenes).to(device)
        twins = scenes[len(rows) :]
        images = torch.cat([pool.batch(rows, device), render(twins).to(device)])
        labels = torch.cat([pool.labels[torch.from_numpy(rows)], render_labels(twins)])
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits, dense, *towers = model(augment(images, rng, noise), encode(texts).to(device))
            held, said = of_scenes(scenes).to(device), of_specs([*specs, *wrong]).to(device)
            readout = model.inventory.loss(towers[0], held) + model.inventory.loss(towers[1], said)
        target = dense_target(labels.to(device))
        patches = F.cross_entropy(dense.flatten(0, 1), target.flatten(0, 1))
        contrast, twin = contrastive_loss(logits, truth), twin_loss(logits)
        half = logits.shape[0] // 2
        own = logits[:, : 2 * half].diagonal()
        beats = own > logits[:, : 2 * half].roll(half, 1).diagonal()
        metrics = {
            "contrast": round(contrast.item(), 4),
            "twin": round(twin.item(), 4),
            "dense": round(patches.item(), 4),
            "inventory": round(readout.item(), 4),
            "beats_twin": round(beats.float().mean().item(), 3),
        }
        return contrast + twin + patches + INVENTORY_WEIGHT * readout, metrics

    train("clip", model, loss, recipe.clip, folder, recipe.seed)
    return model.clip
