"""Advantages: how much better an image is than the others of its prompt; pure functions."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer.core.errors import TuneError
from steer.tune.tables import list_names


Floats = NDArray[np.float64]
Spread = Literal["global", "prompt"]


def best_of_n_weights(scores: ArrayLike, n: int) -> Floats:
    """What best-of-n would draw, as weights of M samples: W_j = M C(j-1, n-1) / C(M, n).

    j is the rank of a sample, 1 the lowest; ties share the mean of their ranks' weights. The
    weights have mean 1, and sum(W R) / M is the mean over all n-subsets of their largest R: the
    unbiased estimate of what best-of-n gets. W - 1 is the score function of the divergence to
    best-of-n (BOND, arXiv:2407.14622; vBoN, arXiv:2407.06057).

    Args:
        scores: (M,) of one prompt.
        n: 1 (all weights 1) to M (the best alone).

    Returns:
        (M,).

    Raises:
        TuneError: `n` below 1 or above M.
    """
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    count = len(values)
    if not 1 <= n <= count:
        raise TuneError(
            f"n={n!r}: best of n needs n from 1 to the {count} sample(s) of a prompt; sample more "
            "images per prompt, or lower n"
        )
    whole = math.comb(count, n)
    ranked = np.array([count * (math.comb(j, n - 1) / whole) for j in range(count)])
    _, place, size = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    shared = [ranked[b - k : b].mean() for b, k in zip(last, size, strict=True)]
    return np.array(shared)[place]


def best_of_n_advantages(scores: ArrayLike, groups: ArrayLike, n: int) -> Floats:
    """`best_of_n_weights` minus 1 within every group: (M,) and (M,) to (M,), mean 0 in each.

    Raises:
        TuneError: A group with fewer than n samples.
    """
    values = np.asarray(scores, dtype=np.float64)
    found = np.empty_like(values)
    for rows in _rows(groups):
        found[rows] = best_of_n_weights(values[rows], n) - 1
    return found


def group_advantages(
    scores: ArrayLike, groups: ArrayLike, spread: Spread = "global", clip: float = 5.0
) -> Floats:
    """(R - mean of the group) / standard deviation, clipped, divided by the clip: in [-1, 1].

    The form of Flow-GRPO (arXiv:2505.05470) and DiffusionNFT (arXiv:2509.16117), whose r is
    (1 + A) / 2 of this A.

    Args:
        scores: (M,) rewards.
        groups: (M,) the prompt of each.
        spread: The standard deviation of the centred scores of all (`"global"`: prompts where
            nothing is at stake stay quiet), or of each group (`"prompt"`).
        clip: In standard deviations.

    Returns:
        (M,), mean 0 in every group but for what is clipped; 0 in groups of equal scores.

    Raises:
        TuneError: `clip` is not positive, or groups of one sample only.
    """
    if not clip > 0:
        raise TuneError(f"clip={clip!r}: must be positive, such as 5")
    centred = np.array(scores, dtype=np.float64)
    kept = _rows(groups)
    alone = [rows for rows in kept if len(rows) == 1]
    if len(alone) == len(kept):
        raise TuneError(
            f"advantages: none of the {len(kept)} prompt(s) has a second image to be compared "
            f"with (rows {list_names([int(rows[0]) for rows in alone])}); sample more per prompt"
        )
    for rows in kept:
        centred[rows] -= centred[rows].mean()
    deviation = np.full_like(centred, centred.std())
    if spread == "prompt":
        for rows in kept:
            deviation[rows] = centred[rows].std()
    scaled = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)
    return np.clip(scaled, -clip, clip) / clip


def _rows(groups: ArrayLike) -> list[NDArray[np.int64]]:
    """The rows of every group."""
    given = np.asarray(groups)
    order = np.argsort(given, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(given[order])) + 1)
