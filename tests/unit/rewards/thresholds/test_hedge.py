"""`hedge` on the toys whose peaks are known, and its slope against the curve itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from steer.rewards import Hedge, hedge
from steer.rewards.thresholds.hedge import _slope


Table = NDArray[np.float64]


def normal(prompts: int = 2000, n: int = 256, seed: int = 0) -> tuple[Table, Table]:
    """The truth and an error, `(P, n)` each."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(prompts, n)), rng.normal(size=(prompts, n))


def curve(proxy: Table, gold: Table, n: float) -> float:
    """The held-out mean of best-of-n on the empirical law of every prompt."""
    ranked = np.take_along_axis(gold, proxy.argsort(1), 1).mean(0)
    u = np.arange(len(ranked) + 1) / len(ranked)
    return float((ranked * np.diff(u**n)).sum())


def test_nothing_to_hedge_where_the_error_is_normal() -> None:
    truth, error = normal()
    assert hedge(0.8 * truth + 0.6 * error, truth) == Hedge(None, None)


def test_two_percent_that_fool_the_reward() -> None:
    """The published curve: .32 .56 .63 .51 at n = 2, 4, 8, 16."""
    truth, error = normal()
    fooled = np.random.default_rng(1).uniform(size=truth.shape) < 0.02
    gold = truth - 3 * fooled
    proxy = 0.8 * gold + 0.6 * error + 5 * fooled
    found = hedge(proxy, gold)
    assert found.n == pytest.approx(8, abs=1.5)
    assert found.temperature is not None
    found_curve = [curve(proxy, gold, n) for n in (2, 4, 8, 16)]
    assert found_curve == pytest.approx([0.32, 0.56, 0.63, 0.51], abs=0.04)


def test_an_error_with_heavy_tails() -> None:
    truth, _ = normal()
    error = np.random.default_rng(2).standard_t(2.2, size=truth.shape)
    found = hedge(truth + 0.8 * error, truth)
    assert found.n == pytest.approx(16, rel=0.25)
    assert found.temperature == pytest.approx(0.64, rel=0.2)


@pytest.mark.parametrize("n", [1.0, 2.0, 5.5, 20.0])
def test_the_slope_is_that_of_the_curve(n: float) -> None:
    truth, error = normal(50, 40)
    proxy, step = truth + error, 1e-5
    ranked = np.take_along_axis(truth, proxy.argsort(1), 1).mean(0)
    numeric = (curve(proxy, truth, n + step) - curve(proxy, truth, n - step)) / (2 * step)
    assert _slope(ranked, n) == pytest.approx(numeric, rel=1e-6, abs=1e-9)


def test_the_peak_is_the_highest_place_of_the_curve() -> None:
    truth, _ = normal(200, 64)
    proxy = truth + 0.8 * np.random.default_rng(3).standard_t(1.5, size=truth.shape)
    found = hedge(proxy, truth).n
    assert found is not None
    sizes = np.exp(np.linspace(0, np.log(64), 400))
    assert found == pytest.approx(
        sizes[np.argmax([curve(proxy, truth, n) for n in sizes])], rel=0.03
    )


def test_a_reward_that_is_wrong_from_the_start() -> None:
    truth, _ = normal(20, 16)
    assert hedge(-truth, truth).n == 1


def test_units_and_levels_of_prompts_do_not_matter() -> None:
    truth, _ = normal(100, 32)
    proxy = truth + np.random.default_rng(4).standard_t(1.5, size=truth.shape)
    level = np.arange(100.0)[:, None]
    first, second = hedge(proxy, truth), hedge(3 * proxy + level, 2 * truth - level)
    assert first.n == pytest.approx(second.n)
    assert first.temperature == pytest.approx(second.temperature)


@pytest.mark.parametrize(
    ("rewards", "held_out", "message"),
    [
        (np.zeros(4), np.zeros(4), r"rewards has shape \(4,\)"),
        (np.zeros((2, 1)), np.zeros((2, 1)), "n of at least 2"),
        (np.zeros((2, 3)), np.zeros((2, 4)), "give one shape"),
        (np.zeros((2, 3)), np.full((2, 3), np.nan), "held_out has a number that is not finite"),
    ],
)
def test_refuses_what_it_cannot_read(rewards: Any, held_out: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hedge(rewards, held_out)
