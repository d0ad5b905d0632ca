"""Advantages and best-of-n weights: exact expectations, ties, invariances, refusals."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from steer.tune import TuneError
from steer.tune.advantages import best_of_n_advantages, best_of_n_weights, group_advantages


scores = st.lists(st.integers(-20, 20), min_size=2, max_size=8)


@given(scores, st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_weighted_rewards_are_the_mean_over_all_subsets_of_their_best(
    values: list[int], n: int
) -> None:
    n = min(n, len(values))
    weights = best_of_n_weights(values, n)
    best = np.mean([max(subset) for subset in combinations(values, n)])
    assert np.mean(weights * values) == pytest.approx(best, rel=1e-12, abs=1e-12)
    assert weights.mean() == pytest.approx(1, rel=1e-12)


def test_weights_at_the_ends_of_known_size_and_of_ties() -> None:
    assert best_of_n_weights([3, 1, 2], 1).tolist() == [1, 1, 1]
    assert best_of_n_weights([3, 1, 2], 3).tolist() == [3, 0, 0]
    known = [0, 0, 0, 0.11, 0.46, 1.14, 2.29, 4.0]
    assert best_of_n_weights(range(8), 4) == pytest.approx(known, abs=5e-3)
    assert best_of_n_weights([1, 0, 1], 2) == pytest.approx([1.5, 0, 1.5])
    for n in (0, 4):
        with pytest.raises(TuneError, match=f"n={n}: best of n needs n from 1 to the 3"):
            best_of_n_weights([1, 2, 3], n)


def test_best_of_n_does_not_see_the_scale_of_rewards() -> None:
    values, groups = [0.1, 0.4, 0.2, 5.0, 3.0, 9.0], [0, 0, 0, 7, 7, 7]
    plain = best_of_n_advantages(values, groups, 2)
    assert np.array_equal(plain, best_of_n_advantages(np.exp(values), groups, 2))
    assert plain[:3].sum() == pytest.approx(0) and plain[3:].sum() == pytest.approx(0)


@pytest.mark.parametrize("spread", ["global", "prompt"])
def test_standard_advantages_are_centred_scaled_and_clipped(spread: str) -> None:
    draw = np.random.default_rng(0)
    values, groups = draw.normal(size=12), np.array([2, 0, 1] * 4)
    found = group_advantages(values, groups, spread)  # type: ignore[arg-type]
    centred = values.copy()
    for g in range(3):
        centred[groups == g] -= values[groups == g].mean()
        if spread == "prompt":
            centred[groups == g] /= values[groups == g].std()
    if spread == "global":
        centred /= centred.std()
    np.testing.assert_allclose(found, centred / 5, rtol=1e-12)
    again = group_advantages(3 * values + 100 * groups, groups, spread)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, again, rtol=1e-9, atol=1e-12)
    order = draw.permutation(12)
    shuffled = group_advantages(values[order], groups[order], spread)  # type: ignore[arg-type]
    np.testing.assert_allclose(found[order], shuffled, rtol=1e-12, atol=1e-14)
    tight = group_advantages(values, groups, spread, clip=0.1)  # type: ignore[arg-type]
    assert set(np.abs(tight)[np.abs(centred) > 0.1]) == {1.0}


def test_equal_scores_have_no_advantage_and_single_images_none_to_be_compared_with() -> None:
    found = group_advantages([1, 1, 1, 2, 4], [0, 0, 0, 1, 1], "prompt")
    assert found[:3].tolist() == [0, 0, 0] and found[3] == -found[4] < 0
    with pytest.raises(TuneError, match=r"none of the 2 prompt\(s\) has a second image"):
        group_advantages([1, 2], [0, 1])
    with pytest.raises(TuneError, match="clip=0: must be positive"):
        group_advantages([1, 2], [0, 0], clip=0)
