"""Stage 5: the preference scorer, the contrastive model fine-tuned with HPS v2's objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from recipes.shapes_world.clip import augment, normalise_pixels
from recipes.shapes_world.preferences import utility, votes
from recipes.shapes_world.recipe import Recipe
from recipes.shapes_world.stage import share, train
from recipes.shapes_world.text import Encoder
from steer.rewards.clip.preprocess import Preprocess
from steer.shapes.captions import caption, parse
from steer.shapes.drawing import place, render
from steer.shapes.scenes import Spec, perturb, sample_spec
from steer.tune.scorer.fit import choice_loss
from steer.tune.scorer.model import OpenClip
from steer.tune.scorer.objective import cosines, pair_loss as pair_loss
from steer.tune.scorer.source import ChoiceBatch


TWIN_SHARE = 0.25
DULL = 0.05
"""Pairs are drawn in proportion to the gap in utility plus this: most pairs of samples are equally
right or wrong and teach only noise."""


def within_caption_auc(scores: Tensor, correct: Tensor) -> float:
    """P(correct image scores above an incorrect one of the same caption), ties half.

    Both `(captions, images)`; captions whose images are all alike do not count.
    """
    gap = scores[:, :, None] - scores[:, None, :]
    pairs = (correct[:, :, None] > 0.5) & (correct[:, None, :] < 0.5)
    wins = (gap > 0).float() + 0.5 * (gap == 0).float()
    return float(wins[pairs].mean())


@dataclass
class ImagePairs:
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
) -> ImagePairs:
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
    return ImagePairs(images, [parse(texts[i]) for i in rows], votes(first, second, noise))


def mirror(pairs: ImagePairs, rng: np.random.Generator) -> ImagePairs:
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
    return ImagePairs(images, specs, pairs.choice)


def twin_pairs(size: int, rng: np.random.Generator) -> ImagePairs:
    """Renders of a training caption beside renders of its twin; all votes go to the true one."""
    specs = [sample_spec(rng, "train") for _ in range(size)]
    twins = [perturb(spec, rng) for spec in specs]
    images = render([place(spec, rng) for spec in [*specs, *twins]]).unflatten(0, (2, size))
    return ImagePairs(images.transpose(0, 1), specs, torch.ones(size))


class JudgedChoices:
    """Judged samples and twins in batches: a `steer.tune.scorer.source.ChoiceSource`.

    Args:
        train, test: Captions and what was judged, as `load_preferences` gives them.
        preprocess: Of the model; images have its size already.
        digest: See `ChoiceSource`.
    """

    def __init__(
        self,
        train: tuple[list[str], dict[str, Tensor]],
        test: tuple[list[str], dict[str, Tensor]],
        preprocess: Callable[[Tensor], Tensor],
        digest: str = "",
    ) -> None:
        self.train, self.test, self.preprocess, self.digest = train, test, preprocess, digest

    def batch(self, size: int, rng: np.random.Generator, noise: torch.Generator) -> ChoiceBatch:
        """ImagePairs of samples, and some twins so that what the model knew is not lost."""
        twins = round(TWIN_SHARE * size)
        drawn = mirror(sample_pairs(*self.train, size - twins, rng, noise), rng)
        made = twin_pairs(twins, rng)
        images = torch.cat([drawn.images, made.images]).flatten(0, 1)
        choice = torch.cat([drawn.choice, made.choice])
        shares = torch.stack([choice, 1 - choice], 1).flatten()
        pixels = self.preprocess(augment(images, rng, noise))
        texts = [caption(spec, rng) for spec in [*drawn.specs, *made.specs]]
        return ChoiceBatch(pixels, (2,) * size, texts, shares, shares)

    def names(self, size: int, rng: np.random.Generator) -> list[str]:
        """The captions that `batch` draws first."""
        texts = self.train[0]
        return [texts[i] for i in rng.integers(len(texts), size=size - round(TWIN_SHARE * size))]

    def held_out(self, size: int) -> Iterator[ChoiceBatch]:
        """All samples of every held-out caption, worth their correctness; neatness is left out."""
        texts, samples = self.test
        count = samples["fraction"].shape[1]
        worth = utility(samples["fraction"], samples["correct"], torch.zeros(1))
        for start in range(0, len(texts), size):
            rows = slice(start, start + size)
            images = samples["images"][samples["group"][rows]].flatten(0, 1).float() / 255
            own = worth[rows].flatten()
            best = (worth[rows] == worth[rows].amax(1, keepdim=True)).float()
            target = (best / best.sum(1, keepdim=True)).flatten()
            counts = (count,) * len(texts[rows])
            yield ChoiceBatch(self.preprocess(images), counts, texts[rows], target, own)


def soup(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The mean of the models' weights (Wortsman et al. 2022, arXiv:2203.05482, arXiv:2109.01903).

    With the model that fine-tuning began from among them, what it knew is kept.
    """
    states = [model.state_dict() for model in models]
    return {key: torch.stack([s[key].float() for s in states]).mean(0) for key in states[0]}


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
    """Fine-tune on pairs of the samples and on twins, by the loop of `steer tune scorer`."""
    clip = OpenClip(model.to(device), {}, {}, encode, Preprocess(), "")
    source = JudgedChoices((texts, samples), (texts, samples), normalise_pixels)
    size = share(recipe.scorer)
    mixed = torch.autocast(torch.device(device).type, torch.bfloat16)
    loss = choice_loss(clip, source, size, 0.0, device, mixed)

    def names(rng: np.random.Generator) -> list[str]:
        return source.names(size, rng)

    train(f"scorer{member}", model, loss, recipe.scorer, folder, recipe.seed, names)
    return model


@torch.no_grad()
def score_samples(
    model: open_clip.CLIP, texts: list[str], images: Tensor, encode: Encoder, device: str
) -> Tensor:
    """Scores `(captions, images)` of uint8 samples `(captions, images, 3, 64, 64)`."""
    scores, count = [], images.shape[1]
    for i in range(0, len(texts), 16):
        part = images[i : i + 16].to(device).flatten(0, 1).float() / 255
        ids = encode(texts[i : i + 16]).to(device)
        found = cosines(model, normalise_pixels(part), ids, (count,) * len(ids))
        scores.append(found.unflatten(0, (-1, count)))
    return torch.cat(scores).cpu()
