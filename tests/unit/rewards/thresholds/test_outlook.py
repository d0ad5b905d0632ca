"""Reservation prices against integrals and published numbers, on rewards and on normal scores."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import integrate, stats

from steer.rewards.thresholds.beliefs import Belief
from steer.rewards.thresholds.outlook import NormalScores, Outlook, upper_half


MEAN, SD = 0.3, 0.02
KNOWN = Outlook(Belief(MEAN, 1e6, 1e6, 1e6 * SD**2))
KNOTS = NormalScores((0.1, 0.35, 0.5, 0.7, 0.74))
LEARNED = Outlook(Belief(0.2, 3.0, 2.0, 1.4), KNOTS)


@pytest.mark.parametrize(
    ("price", "z", "draws"),
    [
        (0.2, 0.49, 3.2),
        (0.1, 0.90, 5.5),
        (0.05, 1.26, 9.6),
        (0.02, 1.66, 20.8),
        (0.01, 1.94, 38),
        (0.005, 2.19, 71),
    ],
)
def test_a_gaussian_that_is_known(price: float, z: float, draws: float) -> None:
    """The level in standard deviations, and the mean of the geometric law of the draws."""
    found = (KNOWN.reservation(price * SD) - MEAN) / SD
    assert found == pytest.approx(z, abs=0.006)
    assert 1 / stats.norm.sf(found) == pytest.approx(draws, rel=0.02)
    assert stats.norm.pdf(found) - found * stats.norm.sf(found) == pytest.approx(price, rel=1e-4)


def test_stopping_there_takes_as_many_draws() -> None:
    rng, level = np.random.default_rng(0), KNOWN.reservation(0.1 * SD)
    rewards = rng.normal(MEAN, SD, (4000, 200))
    draws = (rewards >= level).argmax(1) + 1
    assert draws.mean() == pytest.approx(5.45, abs=4 * draws.std() / math.sqrt(len(draws)))


@pytest.mark.parametrize("level", [-0.4, 0.1, 0.2, 0.5, 0.72, 0.74, 0.9])
def test_the_gain_on_normal_scores_is_an_integral(level: float) -> None:
    belief = LEARNED.belief
    law = stats.t(belief.freedom, belief.centre, belief.spread)

    def above(reward: float) -> float:
        return float(law.sf(KNOTS.of([reward])[0]))

    ends = [level, *(k for k in KNOTS.knots if k > level), 3.0]
    parts = [integrate.quad(above, a, b)[0] for a, b in pairwise(ends)]
    rest = integrate.quad(above, 3.0, KNOTS.rewards([49.0])[0], limit=200)[0]
    assert LEARNED.gain(level) == pytest.approx(sum(parts) + rest, rel=2e-2)


@settings(max_examples=50, deadline=None)
@given(
    price=st.floats(1e-4, 2),
    rewards=st.lists(st.floats(-1, 1), min_size=3, max_size=9, unique=True),
    learned=st.booleans(),
)
def test_the_reservation_price_is_worth_its_price(
    price: float, rewards: list[float], learned: bool
) -> None:
    outlook = (LEARNED if learned else Outlook()).after(rewards)
    level = outlook.reservation(price)
    if outlook.belief.spread > 1e-6:
        assert outlook.gain(level) == pytest.approx(price, rel=1e-4)


def test_free_candidates_are_always_worth_it() -> None:
    assert KNOWN.reservation(0) == math.inf
    assert Outlook().reservation(0.1) == math.inf
    assert Outlook().after([0.2, 0.2, 0.2]).reservation(0.05) == pytest.approx(0.15)
    nearly = Outlook().after([0.0, 7.7e-156, -1.0])  # whose upper half all but coincides
    assert nearly.reservation(1.0) == pytest.approx(-1.0)
    assert LEARNED.gain(-math.inf) == math.inf


def test_failures_do_not_say_how_good_the_best_gets() -> None:
    one = Outlook().after([0.5, 0.6, 0.7, 0.4, 0.3])
    other = Outlook().after([0.5, 0.6, 0.7, -9.0, -5.0])
    assert one.gain(0.7) == pytest.approx(other.gain(0.7))
    np.testing.assert_allclose(np.sort(upper_half([1, 2, 4, 7])), [-1, 2, 4, 7])
    np.testing.assert_allclose(np.sort(upper_half([1, 3, 7])), [-1, 3, 7])
    assert upper_half([5.0]).tolist() == [5.0]


def test_scores_are_normal_and_go_back() -> None:
    rewards = np.random.default_rng(1).gumbel(size=5000)
    scores = NormalScores.fit(rewards, 33)
    assert stats.kstest(scores.of(rewards), "norm").statistic < 0.02
    np.testing.assert_allclose(scores.rewards(scores.of(rewards)), rewards, atol=1e-9)


def test_rewards_of_few_values_stay_as_they_are() -> None:
    assert NormalScores.fit(np.array([0.0, 1.0] * 20), 9).knots == ()
    assert NormalScores.fit(np.array([0.3]), 9).knots == ()
