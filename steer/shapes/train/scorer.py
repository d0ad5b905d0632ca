"""Stage 5: the preference scorer, the contrastive model fine-tuned with HPS v2's objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from steer.shapes.captions import caption, parse
from steer.shapes.scenes import Spec, perturb, place, render, sample_spec
from steer.shapes.train.clip import augment, normalise_pixels
from steer.shapes.train.preferences import utility, votes
from steer.shapes.train.recipe import Recipe
from steer.shapes.train.stage import share, train
from steer.shapes.train.text import Encoder


TWIN_SHARE = 0.25
DULL = 0.05
"""Pairs are drawn in proportion to the gap in utility plus this: most pairs of samples are equally
right or wrong and teach only noise."""


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


@dataclass
class Pairs:
    """Two images `(B, 2, 3, 64, 64)` of each caption, and the share of votes for the first."""

    images: Tensor
    specs: list[Spec]
    choice: Tensor


def sample_pairs(
    texts: list[str],
    samples: dict[str, Tensor],
    size: int,
    rng: np.random.Generator,
    noise: torch.Generator,
) -> Pairs:
    """Pairs of images of one group (see `load_preferences`) for one caption, and their votes."""
    rows = torch.from_numpy(rng.integers(len(texts), size=size))
    groups = samples["group"][rows]
    parts = [samples["fraction"][rows], samples["correct"][rows], samples["neat"][groups]]
    every = utility(*parts)
    gap = (every[:, :, None] - every[:, None, :]).abs() + DULL
    gap.diagonal(dim1=1, dim2=2).zero_()
    drawn = torch.multinomial(gap.flatten(1), 1, generator=noise)[:, 0]
    count = every.shape[1]
    pair = torch.stack([drawn // count, drawn % count], 1)
    worth = [part.gather(1, pair) for part in parts]
    first, second = utility(*worth).unbind(1)
    images = samples["images"][groups[:, None], pair].float() / 255
    return Pairs(images, [parse(texts[i]) for i in rows], votes(first, second, noise))


def mirrored(pairs: Pairs, rng: np.random.Generator) -> Pairs:
    """Half of the pairs flipped left to right, with what their captions say of left and right."""
    flip = torch.from_numpy(rng.random(len(pairs.specs)) < 0.5)
    images = torch.where(flip[:, None, None, None, None], pairs.images.flip(-1), pairs.images)
    turned = {"left of": "right of", "right of": "left of"}
    specs = [
        replace(spec, relation=turned.get(spec.relation, spec.relation))
        if over and spec.relation
        else spec
        for spec, over in zip(pairs.specs, flip.tolist(), strict=True)
    ]
    return Pairs(images, specs, pairs.choice)


def twin_pairs(size: int, rng: np.random.Generator) -> Pairs:
    """Renders of a training caption beside renders of its twin; all votes go to the true one."""
    specs = [sample_spec(rng, "train") for _ in range(size)]
    twins = [perturb(spec, rng) for spec in specs]
    images = render([place(spec, rng) for spec in [*specs, *twins]]).unflatten(0, (2, size))
    return Pairs(images.transpose(0, 1), specs, torch.ones(size))


def train_scorer(
    model: open_clip.CLIP,
    texts: list[str],
    samples: dict[str, Tensor],
    encode: Encoder,
    recipe: Recipe,
    folder: Path,
    device: str,
    member: int = 0,
) -> open_clip.CLIP:
    """Fine-tune on pairs of the samples, and on some twins so that what it knew is not lost."""
    model = model.to(device)
    size = share(recipe.scorer)
    twins = round(TWIN_SHARE * size)

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn = mirrored(sample_pairs(texts, samples, size - twins, rng, noise), rng)
        made = twin_pairs(twins, rng)
        images = torch.cat([drawn.images, made.images]).to(device)
        images = augment(images.flatten(0, 1), rng, noise).unflatten(0, (size, 2))
        ids = encode([caption(spec, rng) for spec in [*drawn.specs, *made.specs]]).to(device)
        choice = torch.cat([drawn.choice, made.choice]).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            cosine = similarities(model, images, ids)
        value = pair_loss(cosine * model.logit_scale.exp().clamp(max=100), choice)
        right = ((cosine[:, 0] > cosine[:, 1]) == (choice > 0.5)).float()
        return value, {
            "accuracy": round(right[: size - twins].mean().item(), 3),
            "accuracy_twins": round(right[size - twins :].mean().item(), 3),
        }

    train(f"scorer{member}", model, loss, recipe.scorer, folder, recipe.seed)
    return model


def soup(models: Sequence[open_clip.CLIP]) -> dict[str, Tensor]:
    """The mean of the models' weights (Wortsman et al. 2022, arXiv:2203.05482, arXiv:2109.01903).

    The contrastive model is one of them: each fine-tuned one alone overfits its few samples.
    """
    states = [model.state_dict() for model in models]
    return {key: torch.stack([s[key].float() for s in states]).mean(0) for key in states[0]}


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
