"""KL of choices against quadrature, enumeration and known limits."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from steer.core.divergence import kl_of_best, kl_of_choice, kl_of_rank, kl_of_weights


@pytest.mark.parametrize("n", [1, 2, 4, 17, 1000])
def test_best_of_n(n: int) -> None:
    assert kl_of_best(n) == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-9)
    assert kl_of_rank(n, n - 1) == pytest.approx(kl_of_best(n), abs=1e-9)


@pytest.mark.parametrize(("n", "rank"), [(2, 0), (5, 3), (8, 4), (16, 14)])
def test_a_rank_by_quadrature(n: int, rank: int) -> None:
    law: Any = stats.beta(rank + 1, n - rank)
    exact, _ = quad(lambda u: law.pdf(u) * law.logpdf(u), 0, 1)
    assert kl_of_rank(n, rank) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(("n", "count"), [(3, 2), (4, 2), (8, 3)])
def test_several_of_the_best_by_simulation(n: int, count: int) -> None:
    """ln of the density ratio C(n, k) F^(n-k), on draws of the best k of n uniform scores."""
    scores = np.sort(np.random.default_rng(0).random((200_000, n)), 1)[:, -count]
    logs = math.log(math.comb(n, count)) + (n - count) * np.log(scores)
    error = logs.std() / len(logs) ** 0.5 / count
    assert kl_of_best(n, count) == pytest.approx(logs.mean() / count, abs=4 * error)
    assert 0 < kl_of_best(n, count) < kl_of_choice(n, count)


def test_any_rule_on_few_values_stays_below() -> None:
    """Candidates with three values; rules that look for one value, in any order of preference."""
    p, n = np.array([0.1, 0.3, 0.6]), 4
    for wanted, second in combinations(range(3), 2):
        third = 3 - wanted - second
        first = 1 - (1 - p[wanted]) ** n
        q = np.zeros(3)
        q[wanted], q[third] = first, p[third] ** n
        q[second] = 1 - q.sum()
        assert float(q @ np.log(q / p)) <= kl_of_best(n) + 1e-12


def test_weights() -> None:
    assert kl_of_weights(np.full(7, -3.0)) == pytest.approx(0, abs=1e-12)
    assert kl_of_weights(np.array([0.0, -np.inf, -np.inf])) == pytest.approx(math.log(3))
    weights = np.array([0.5, 0.25, 0.25])
    exact = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    assert kl_of_weights(np.log(weights) + 5) == pytest.approx(exact)


def test_nothing_to_choose() -> None:
    assert kl_of_best(2, 2) == kl_of_choice(2, 3) == 0
