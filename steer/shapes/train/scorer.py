"""Stage 5: the preference scorer, the contrastive model fine-tuned with HPS v2's objective."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from steer.shapes.captions import caption, parse
from steer.shapes.train.clip import augment, normalise_pixels
from steer.shapes.train.preferences import utility, votes
from steer.shapes.train.recipe import Recipe
from steer.shapes.train.stage import share, train
from steer.shapes.train.text import Encoder


def pair_loss(scores: Tensor, choice: Tensor) -> Tensor:
    """KL from the choice to the softmax over each pair (HPS v2, arXiv:2306.09341, eq. 2).

    Args:
        scores: `(B, 2)` scaled similarities of the two images to their caption.
        choice: `(B,)` share of annotators that chose the first.
    """
    target = torch.stack([choice, 1 - choice], 1)
    return F.kl_div(F.log_softmax(scores, 1), target, reduction="batchmean")


def similarities(model: open_clip.CLIP, images: Tensor, ids: Tensor) -> Tensor:
    """Cosine of each image `(B, K, 3, 64, 64)` with its row's caption `(B, context)`: `(B, K)`."""
    image = model.encode_image(normalise_pixels(images.flatten(0, 1)), normalize=True).float()
    text = model.encode_text(ids, normalize=True).float()
    return (image.unflatten(0, images.shape[:2]) * text[:, None]).sum(-1)


def within_caption_auc(scores: Tensor, correct: Tensor) -> float:
    """P(correct image scores above an incorrect one of the same caption), ties half.

    Both `(captions, images)`; captions whose images are all alike do not count.
    """
    gap = scores[:, :, None] - scores[:, None, :]
    pairs = (correct[:, :, None] > 0.5) & (correct[:, None, :] < 0.5)
    wins = (gap > 0).float() + 0.5 * (gap == 0).float()
    return float(wins[pairs].mean())


def train_scorer(
    model: open_clip.CLIP,
    texts: list[str],
    samples: dict[str, Tensor],
    encode: Encoder,
    recipe: Recipe,
    folder: Path,
    device: str,
) -> open_clip.CLIP:
    """Fine-tune on pairs of the samples `(captions, images, ...)` of one caption each."""
    model = model.to(device)
    worth = utility(samples["fraction"], samples["correct"], samples["neat"])
    specs = [parse(text) for text in texts]
    count = worth.shape[1]

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        size = share(recipe.scorer)
        rows = torch.from_numpy(rng.integers(len(texts), size=size))
        pair = torch.from_numpy(np.stack([rng.permutation(count)[:2] for _ in range(size)]))
        images = samples["images"][rows[:, None], pair].to(device).float() / 255
        images = augment(images.flatten(0, 1), rng, noise).unflatten(0, (size, 2))
        ids = encode([caption(specs[i], rng) for i in rows]).to(device)
        u = worth[rows[:, None], pair]
        choice = votes(u[:, 0], u[:, 1], noise).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            cosine = similarities(model, images, ids)
        value = pair_loss(cosine * model.logit_scale.exp().clamp(max=100), choice)
        right = ((cosine[:, 0] > cosine[:, 1]) == (choice > 0.5)).float().mean()
        return value, {"accuracy": round(right.item(), 3)}

    train("scorer", model, loss, recipe.scorer, folder, recipe.seed)
    return model


@torch.no_grad()
def score_samples(
    model: open_clip.CLIP, texts: list[str], images: Tensor, encode: Encoder, device: str
) -> Tensor:
    """Scores `(captions, images)` of uint8 samples `(captions, images, 3, 64, 64)`."""
    scores = [
        similarities(
            model, images[i : i + 16].to(device).float() / 255, encode(texts[i : i + 16]).to(device)
        )
        for i in range(0, len(texts), 16)
    ]
    return torch.cat(scores).cpu()
