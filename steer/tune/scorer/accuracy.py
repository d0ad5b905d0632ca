"""How often a scorer prefers the image that was preferred, and how sure that number is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm


@dataclass(frozen=True)
class Accuracy:
    """A share of pairs with an interval.

    Attributes:
        value: Share of pairs that are ordered as they were preferred; a tie in score is half right.
        low, high: Of the interval.
        pairs, prompts: How many pairs, of how many prompts.
    """

    value: float
    low: float
    high: float
    pairs: int
    prompts: int

    def __str__(self) -> str:
        return (
            f"{100 * self.value:.1f}% ({100 * self.low:.1f} to {100 * self.high:.1f}) of "
            f"{self.pairs} pairs of {self.prompts} prompts"
        )


def count_ordered(scores: NDArray[np.float64], worth: NDArray[np.float64]) -> tuple[float, int]:
    """How many pairs of one prompt's images are ordered by score as by worth, of how many.

    Args:
        scores, worth: `(n,)`. Pairs of equal worth do not count, those of equal score half.
    """
    a, b = np.triu_indices(len(scores), 1)
    preferred, seen = np.sign(worth[a] - worth[b]), np.sign(scores[a] - scores[b])
    counted = preferred != 0
    return float(((1 + preferred * seen) / 2)[counted].sum()), int(counted.sum())


def accuracy(right: Sequence[float], pairs: Sequence[int], level: float = 0.95) -> Accuracy:
    """The accuracy over prompts, whose own pairs are not independent of each other.

    Wilson's interval (1927) at the effective number of pairs: their number over the design effect
    of sampling prompts, the ratio of the between-prompt variance to the binomial one (Kish 1965),
    at least 1. Where all or no pairs are right, that effect is taken as pairs per prompt.

    Args:
        right: Pairs ordered rightly, per prompt.
        pairs: Pairs, per prompt; prompts without any are ignored.
        level: Of the interval.

    Raises:
        ValueError: No pairs at all.
    """
    counted = [(r, n) for r, n in zip(right, pairs, strict=True) if n]
    if not counted:
        raise ValueError("no held-out pair in which one image was preferred; give others")
    wins, sizes = np.array(counted, dtype=np.float64).T
    total, groups = sizes.sum(), len(sizes)
    p = wins.sum() / total
    binomial = p * (1 - p) / total
    if binomial <= 0 or groups == 1:
        effect = total / groups if groups > 1 else total
    else:
        spread = groups / (groups - 1) * ((wins - p * sizes) ** 2).sum() / total**2
        effect = max(1.0, spread / binomial)
    low, high = wilson(p, total / effect, level)
    return Accuracy(float(p), low, high, int(total), groups)


def wilson(p: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share `p` of `n` trials (n need not be whole)."""
    z = float(norm.ppf((1 + level) / 2))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))
