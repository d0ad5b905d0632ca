"""A set that is good and varied: group inference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from steer.core.checks import positive
from steer.search.picks.base import Candidates, Floats, Pick, best_first, standardise


Features: TypeAlias = Callable[[Tensor], Tensor]
"""Images `(B, 3, H, W)` or videos `(B, F, 3, H, W)` in [0, 1] to `(B, d)`."""

_MOST_SETS = 100_000
_CELLS = 8


@dataclass(frozen=True)
class Diverse(Pick):
    """The set of candidates that are good and unlike each other.

    Group inference (Parmar et al. 2025, arXiv:2508.15773): maximise the sum of the rewards plus
    `lam` times the sum of the distances of all pairs, both standardised over the prompt's
    candidates. Exact where there are fewer than 100 000 sets, else greedy with exchanges. A single
    returned image is the best.

    Distances are Euclidean between `features`. Those by default are the colours of 8 x 8 areas,
    which need no model and see layout and palette, not meaning. With a CLIP reward,
    `Diverse(features=reward.embed)` sees what the pictures show.

    Args:
        lam: Weight of the distances; 0 is the best.
        features: Images `(B, 3, H, W)` (or videos) to `(B, d)`; `None` for the colours.

    Raises:
        ValueError: `lam` is no finite number of at least 0, or `features` is no function; when
            called: features that are not `(B, d)`.
    """

    lam: float = 0.2
    features: Features | None = None

    looks = True

    def __post_init__(self) -> None:
        positive("lam", self.lam, zero=True, none=False)
        if self.features is not None and not callable(self.features):
            raise ValueError(
                f"features={self.features!r}: must be a function (images) -> (B, d), or None for "
                "the colours of the image's areas"
            )

    def look(self, images: Tensor) -> Tensor:
        """Features `(B, d)` of images or videos."""
        found = (self.features or colour_layout)(images)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"features={self.features!r} returned {what} for {len(images)} images: it must "
                f"return a tensor ({len(images)}, d)"
            )
        return found

    def choose(self, candidates: Candidates, count: int) -> list[int]:
        """The set, best first."""
        order = best_first(candidates.rewards)
        if count == 1 or not self.lam or candidates.features is None:
            return order[:count]
        worth = candidates.standardised()[order]
        chosen = choose_group(worth, self.lam * distances(candidates.features[order]), count)
        return [order[row] for row in chosen]


def colour_layout(images: Tensor) -> Tensor:
    """`(B, d)`: the mean colours of 8 x 8 areas, of every frame where there are several."""
    frames = images.detach().float().reshape(-1, *images.shape[-3:])
    return F.adaptive_avg_pool2d(frames, _CELLS).reshape(len(images), -1)


def distances(features: Floats) -> Floats:
    """`(n, n)` Euclidean distances, of mean 0 and deviation 1 over all pairs; 0 on the diagonal."""
    square = np.square(features).sum(1)
    gaps = square[:, None] + square[None] - 2 * features @ features.T
    found = np.zeros_like(gaps)
    upper = np.triu_indices(len(features), 1)
    found[upper] = standardise(np.sqrt(np.maximum(gaps[upper], 0)))
    return found + found.T


def choose_group(worth: Floats, pairs: Floats, count: int) -> list[int]:
    """The `count` rows with the largest sum of `worth` (n,) and of `pairs` (n, n) among them.

    Args:
        worth: Of every row.
        pairs: Of every pair: symmetric, 0 on the diagonal.
        count: At most n.

    Returns:
        Rows in order; the exact best set where there are fewer than 100 000 sets, else one that no
        exchange of two rows makes better.
    """
    if math.comb(len(worth), count) < _MOST_SETS:
        return _best_set(worth, pairs, count)
    starts = (_greedy(worth, pairs, count), best_first(worth)[:count])
    ends = [_exchange(worth, pairs, start) for start in starts]
    return sorted(max(ends, key=lambda rows: _value(worth, pairs, rows)))


def _best_set(worth: Floats, pairs: Floats, count: int) -> list[int]:
    sets = np.array(list(combinations(range(len(worth)), count)))
    values = worth[sets].sum(1)
    for a, b in combinations(range(count), 2):
        values += pairs[sets[:, a], sets[:, b]]
    return sets[values.argmax()].tolist()


def _greedy(worth: Floats, pairs: Floats, count: int) -> list[int]:
    """Row by row, the one that adds most."""
    rows: list[int] = []
    for _ in range(count):
        gains = worth + pairs[:, rows].sum(1)
        gains[rows] = -np.inf
        rows.append(int(gains.argmax()))
    return rows


def _exchange(worth: Floats, pairs: Floats, rows: list[int]) -> list[int]:
    """Exchange one row for another as long as that adds something."""
    rows = list(rows)
    while True:
        gains = worth + pairs[:, rows].sum(1)
        # row `new` for `old`: what `new` adds beside the others, less what `old` adds
        change = gains[:, None] - pairs[:, rows] - gains[rows][None]
        change[rows] = -np.inf
        new, place = np.unravel_index(change.argmax(), change.shape)
        if change[new, place] <= 1e-9:
            return rows
        rows[int(place)] = int(new)


def _value(worth: Floats, pairs: Floats, rows: list[int]) -> float:
    return float(worth[rows].sum() + pairs[np.ix_(rows, rows)].sum() / 2)
