"""HPS v2's objective and accuracies against closed forms, float64 autograd and brute force."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import binomtest
from torch import Tensor

from steer.tune.scorer.accuracy import accuracy, count_ordered, wilson
from steer.tune.scorer.objective import pad_rows, pair_loss, preference_loss


def rows(count: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = 5 * torch.randn(count, n, generator=generator, dtype=torch.float64)
    target = torch.rand(count, n, generator=generator, dtype=torch.float64)
    return scores, target / target.sum(1, keepdim=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 99), st.sampled_from([0.0, 0.1, 1.0]))
def test_loss_is_the_kl_and_its_gradient_softmax_minus_target(
    count: int, n: int, seed: int, smoothing: float
) -> None:
    scores, target = rows(count, n, seed)
    scores.requires_grad_()
    smooth = (1 - smoothing) * target + smoothing / n
    p = scores.detach().exp() / scores.detach().exp().sum(1, keepdim=True)
    expected = (smooth * (smooth / p).log()).sum() / count
    loss = preference_loss(scores, target, smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, (p - smooth) / count)


def test_loss_of_unequal_numbers_of_images_is_the_mean_of_each() -> None:
    parts = [rows(1, n, n) for n in (2, 4, 3)]
    flat = torch.cat([scores[0] for scores, _ in parts]).requires_grad_()
    counts = (2, 4, 3)
    scores, mask = pad_rows(flat, counts)
    target, _ = pad_rows(torch.cat([t[0] for _, t in parts]), counts)
    assert mask.sum().item() == 9 and scores.shape == (3, 4)
    loss = preference_loss(scores, target, mask, 0.1)
    each = [preference_loss(s, t, smoothing=0.1) for s, t in parts]
    torch.testing.assert_close(loss, torch.stack(each).mean())
    (gradient,) = torch.autograd.grad(loss, flat)
    assert gradient.isfinite().all()


def test_one_hot_is_cross_entropy_and_the_target_is_the_minimum() -> None:
    scores, target = rows(3, 4, 0)
    chosen = torch.tensor([1, 3, 0])
    hot = torch.nn.functional.one_hot(chosen, 4).double()
    expected = torch.nn.functional.cross_entropy(scores, chosen)
    torch.testing.assert_close(preference_loss(scores, hot), expected)
    assert float(preference_loss(target.log(), target)) == pytest.approx(0, abs=1e-12)


def test_a_pairs_loss_is_bradley_terry() -> None:
    scores = torch.tensor([[1.0, 0.2]], dtype=torch.float64)
    expected = -math.log(1 / (1 + math.exp(-0.8)))
    assert float(pair_loss(scores, torch.tensor([1.0]).double())) == pytest.approx(expected)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=7).map(
        lambda x: np.array(x, dtype=np.float64)
    )
)
def test_ordered_pairs_by_brute_force(found: np.ndarray) -> None:
    scores, worth = found.T
    right, total = 0.0, 0
    for i, j in combinations(range(len(scores)), 2):
        if worth[i] != worth[j]:
            total += 1
            gap = (scores[i] - scores[j]) * (worth[i] - worth[j])
            right += 0.5 if gap == 0 else float(gap > 0)
    assert count_ordered(scores, worth) == (right, total)


def test_one_pair_per_prompt_gives_about_wilsons_own_interval() -> None:
    found = accuracy([1] * 70 + [0] * 30, [1] * 100)
    interval = binomtest(70, 100).proportion_ci(method="wilson")
    assert (found.value, found.pairs, found.prompts) == (0.7, 100, 100)
    assert found.low == pytest.approx(interval.low, abs=2e-3)
    assert found.high == pytest.approx(interval.high, abs=2e-3)
    exact = wilson(0.7, 100)
    assert exact == pytest.approx((interval.low, interval.high))


def test_pairs_of_one_prompt_that_agree_count_as_few() -> None:
    """Ten copies of every prompt's pair say nothing new; the interval is as wide as without."""
    single = accuracy([1] * 70 + [0] * 30, [1] * 100)
    copies = accuracy([10] * 70 + [0] * 30, [10] * 100)
    assert copies.high - copies.low == pytest.approx(single.high - single.low, rel=0.02)


def test_the_interval_covers_at_its_level() -> None:
    """600 simulated scorers, 40 prompts of 6 pairs, correlated within a prompt."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        own = rng.beta(3.5, 1.5, 40)  # mean 0.7
        found = accuracy(rng.binomial(6, own).tolist(), [6] * 40)
        covered += found.low <= 0.7 <= found.high
    assert 0.92 <= covered / 600 <= 0.98


def test_all_right_is_not_certain_and_none_is_refused() -> None:
    found = accuracy([6] * 20, [6] * 20)
    assert found.value == 1.0 and found.high == 1.0 and found.low == pytest.approx(0.839, abs=1e-3)
    assert "100.0% (83.9 to 100.0) of 120 pairs of 20 prompts" in str(found)
    with pytest.raises(ValueError, match="no held-out pair"):
        accuracy([0, 0], [0, 0])
