"""Intervals of means against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from steer.core.intervals import estimate


def test_the_interval_of_a_normal_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = estimate(values)
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(low, abs=0.02) and found.high == pytest.approx(high, abs=0.02)
    assert estimate(values) == found  # the same every time


def test_the_interval_covers() -> None:
    """About 95 of 100 intervals of skewed samples hold the true mean."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(60):
        found = estimate(rng.exponential(1.0, 80))
        held += found.low <= 1.0 <= found.high  # pyright: ignore[reportOptionalOperand]
    assert 52 <= held <= 60


def test_degenerate_intervals() -> None:
    assert estimate(np.array([0.4])).to_dict() == {"mean": 0.4, "low": None, "high": None}
    same = estimate(np.full(9, 0.25))
    assert (same.low, same.high) == (0.25, 0.25)
    two = estimate(np.array([0.0, 1.0]))
    assert two.low is not None and two.high is not None and two.low <= 0.5 <= two.high
