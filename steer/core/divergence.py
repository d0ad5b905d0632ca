"""How far a choice moves a sampler: upper estimates of KL(chosen || one candidate), in nats.

The bound of the best of n holds for any rule that chooses one of n independent candidates,
whatever it looks at: no set of probability a holds the chosen one with more than 1 - (1 - a)^n,
which is what the best under some score attains.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def kl_of_best(n: int, count: int = 1) -> float:
    """Of the `count` best of `n` independent candidates, per chosen one; exact without ties.

    `ln n - (n-1)/n` for one (Beirami et al. 2024, arXiv:2401.01879). The density of the best k of
    n as a set, over that of k candidates, is C(n, k) F^(n-k) with F the share below the worst of
    them; its KL is ln C(n, k) - (n-k) (1/(n-k+1) + ... + 1/n), and a k-th of that bounds the mean
    over the k.
    """
    if count >= n:
        return 0.0
    kept = (n - count) * _harmonic(n - count + 1, n)
    return max(0.0, (_log_binomial(n, count) - kept) / count)


def kl_of_choice(n: int, count: int = 1) -> float:
    """A bound for any rule that chooses `count` of `n`, dependent ones too: ln C(n, k) / k."""
    return 0.0 if count >= n else _log_binomial(n, count) / count


def kl_of_rank(n: int, rank: int) -> float:
    """Of the candidate with `rank` others below it, of `n` independent ones: exact without ties.

    Its share of the reward's distribution is Beta(rank + 1, n - rank).
    """
    above = n - 1 - rank
    log_density = math.log(n) + _log_binomial(n - 1, rank)
    return log_density - rank * _harmonic(rank + 1, n) - above * _harmonic(above + 1, n)


def kl_of_weights(log_weights: NDArray[np.float64]) -> float:
    """Of a draw by weights `(n,)`: sum w ln(n w), from their logs, which need not sum to 1."""
    logs = log_weights - np.logaddexp.reduce(log_weights)
    weights = np.exp(logs)
    positive = weights > 0
    return max(0.0, float(np.log(len(logs)) + weights[positive] @ logs[positive]))


def _harmonic(first: int, last: int) -> float:
    """1/first + ... + 1/last."""
    return sum(1 / j for j in range(first, last + 1))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
