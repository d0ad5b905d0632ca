"""Stage 2: a genuine open_clip ViT, trained contrastively with hard negatives.

A dense auxiliary head (what covers each patch?) rides on the patch tokens during training and is
thrown away: without it a ViT this small spends most of its budget finding out that objects exist.
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

from steer.shapes.captions import caption
from steer.shapes.scenes import COLORS, SHAPES, Scene, Spec, is_true_of, perturb
from steer.shapes.train.data import Pool
from steer.shapes.train.recipe import Recipe
from steer.shapes.train.stage import share, train
from steer.shapes.train.text import CONTEXT_LENGTH, Encoder


PATCH = 8
LABELS = 1 + len(COLORS) * len(SHAPES)
NEGATIVES = 2
DENSE_WEIGHT = 1.0
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
    """Symmetric InfoNCE over N images and N captions + negatives `(N, N * (1 + NEGATIVES))`.

    Captions that happen to be true of an image are no negatives of it (`truth` masks them out).
    """
    n = logits.shape[0]
    target = torch.arange(n, device=logits.device)
    own = F.one_hot(target, logits.shape[1]).bool()
    masked = logits.masked_fill(truth & ~own, float("-inf"))
    return (F.cross_entropy(masked, target) + F.cross_entropy(masked[:, :n].T, target)) / 2


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

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        self.clip.visual.output_tokens = True  # pyright: ignore[reportAttributeAccessIssue]
        pooled, tokens = self.clip.visual(normalise_pixels(images))
        self.clip.visual.output_tokens = False  # pyright: ignore[reportAttributeAccessIssue]
        text = self.clip.encode_text(ids, normalize=True)
        scale = self.clip.logit_scale.exp().clamp(max=100)
        logits = scale * F.normalize(pooled.float(), dim=-1) @ text.float().T
        return logits, self.dense(tokens).float()


def train_clip(
    pool: Pool, encode: Encoder, vocabulary: int, recipe: Recipe, folder: Path, device: str
) -> open_clip.CLIP:
    """Train on renders, with two hard negatives per caption."""
    model = ClipTrainer(vocabulary).to(device)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = rng.integers(len(pool.specs), size=share(recipe.clip))
        true = [pool.specs[i] for i in rows]
        wrong = [perturb(spec, rng) for _ in range(NEGATIVES) for spec in true]
        texts = [caption(spec, rng) for spec in [*true, *wrong]]
        table = truth_table([*true, *wrong], [pool.scenes[i] for i in rows]).to(device)
        images = augment(pool.batch(rows, device), rng, noise)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits, dense = model(images, encode(texts).to(device))
        target = dense_target(pool.labels[torch.from_numpy(rows)].to(device))
        patches = F.cross_entropy(dense.flatten(0, 1), target.flatten(0, 1))
        contrast = contrastive_loss(logits, table)
        n = len(rows)
        own = logits[:, :n].diagonal()
        hard = torch.stack(
            [logits[range(n), range(n * (k + 1), n * (k + 2))] for k in range(NEGATIVES)]
        )
        metrics = {
            "contrast": round(contrast.item(), 4),
            "dense": round(patches.item(), 4),
            "beats_hard": round((own > hard).float().mean().item(), 3),
        }
        return contrast + DENSE_WEIGHT * patches, metrics

    train("clip", model, loss, recipe.clip, folder, recipe.seed)
    return model.clip
