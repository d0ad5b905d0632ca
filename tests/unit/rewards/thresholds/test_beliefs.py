"""The normal-inverse-gamma belief against integrals and a posterior on a grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from steer.rewards.thresholds.beliefs import Belief


PRIOR = Belief(centre=0.3, weight=0.7, shape=2.2, scale=0.09)
SEEN = [0.1, 0.45, 0.2, 0.9]


def test_the_update_is_the_posterior_on_a_grid() -> None:
    """Moments of mean and variance under prior times likelihood, summed over a fine grid."""
    mean = np.linspace(-6, 7, 2001)[:, None]
    log_variance = np.linspace(-8, 5, 1501)[None]
    variance = np.exp(log_variance)
    log_density = stats.invgamma.logpdf(variance, PRIOR.shape, scale=PRIOR.scale) + log_variance
    log_density = log_density + stats.norm.logpdf(
        mean, PRIOR.centre, np.sqrt(variance / PRIOR.weight)
    )
    for value in SEEN:
        log_density = log_density + stats.norm.logpdf(value, mean, np.sqrt(variance))
    density = np.exp(log_density - log_density.max())
    density /= density.sum()

    after = PRIOR.after(SEEN)
    assert (density * mean).sum() == pytest.approx(after.centre, abs=1e-6)
    assert (density / variance).sum() == pytest.approx(after.shape / after.scale, rel=1e-5)
    assert (density * variance).sum() == pytest.approx(after.scale / (after.shape - 1), rel=1e-4)
    spread = (density * (mean - after.centre) ** 2).sum()
    assert spread == pytest.approx(after.scale / (after.shape - 1) / after.weight, rel=1e-4)


def test_one_at_a_time_is_all_at_once() -> None:
    step = PRIOR
    for value in SEEN:
        step = step.after([value])
    whole = PRIOR.after(SEEN)
    for name in ("centre", "weight", "shape", "scale"):
        assert getattr(step, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_nothing_seen_changes_nothing() -> None:
    assert PRIOR.after([]) == PRIOR


def test_without_a_prior_it_is_students_t() -> None:
    belief, n = Belief().after(SEEN), len(SEEN)
    assert belief.freedom == n - 1
    assert belief.centre == pytest.approx(np.mean(SEEN))
    assert belief.spread == pytest.approx(np.std(SEEN, ddof=1) * math.sqrt(1 + 1 / n))


@pytest.mark.parametrize("freedom", [1.5, 2.0, 3.0, 8.0, 200.0])
@pytest.mark.parametrize("level", [-2.0, 0.3, 0.9, 3.0])
def test_the_gain_is_an_integral(freedom: float, level: float) -> None:
    belief = Belief(0.3, 2.0, freedom / 2, 0.4)
    law = stats.t(freedom, belief.centre, belief.spread)
    whole = integrate.quad(lambda v: law.sf(v), level, math.inf, limit=400)[0]
    assert belief.gain([level])[0] == pytest.approx(whole, rel=1e-6)


def test_too_little_known_is_worth_anything() -> None:
    assert np.isinf(Belief().gain([0.0])).all()
    assert np.isinf(Belief().after([1.0, 2.0]).gain([5.0])).all()


def test_equal_values_promise_nothing_more() -> None:
    belief = Belief().after([0.5] * 4)
    assert belief.gain([0.5, 0.2]).tolist() == pytest.approx([0.0, 0.3])
