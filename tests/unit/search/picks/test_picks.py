"""Picks by closed forms: their limits, their laws, and sets against enumeration."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from steer.search.picks import Best, Candidates, Diverse, Pessimistic, Pick, Quantile, SoftBest
from steer.search.picks.base import best_first, check_pick, standardise
from steer.search.picks.diverse import choose_group, colour_layout, distances
from steer.search.picks.draws import pessimistic_weights


def candidates(rewards: Any, seed: int = 0) -> Candidates:
    values = np.asarray(rewards, dtype=float)
    rng = np.random.default_rng(seed)
    return Candidates(values, rng.uniform(size=len(values)), rng.normal(size=(len(values), 3)))


def shares(pick: Pick, rewards: Any, draws: int = 4000) -> np.ndarray:
    """How often each candidate is the one."""
    values = np.asarray(rewards, dtype=float)
    counts, rng = np.zeros(len(values)), np.random.default_rng(1)
    for _ in range(draws):
        (row,) = pick.choose(Candidates(values, rng.uniform(size=len(values))), 1)
        counts[row] += 1
    return counts / draws


REWARDS = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=12)
ALL = (Best(), Quantile(n_eff=3), Quantile(q=0.5), SoftBest(), Pessimistic(), Diverse(), Diverse(2))


@pytest.mark.parametrize("pick", ALL, ids=repr)
@given(rewards=REWARDS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_different_rows_best_first(pick: Pick, rewards: list[float], data: Any) -> None:
    count = data.draw(st.integers(1, len(rewards) - 1))
    rows = pick.choose(candidates(rewards), count)
    assert len(rows) == len(set(rows)) == count
    found = [rewards[row] for row in rows]
    assert found == sorted(found, reverse=True)


@given(rewards=REWARDS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_best_is_a_stable_sort(rewards: list[float], data: Any) -> None:
    count = data.draw(st.integers(1, len(rewards)))
    wanted = sorted(range(len(rewards)), key=lambda row: (-rewards[row], row))[:count]
    assert Best().choose(candidates(rewards), count) == wanted


@given(rewards=REWARDS, shift=st.floats(-9, 9), scale=st.sampled_from([1e-3, 0.5, 3.0, 1e4]))
@settings(max_examples=60, deadline=None)
def test_the_units_of_the_reward_do_not_matter(
    rewards: list[float], shift: float, scale: float
) -> None:
    other = [shift + scale * value for value in rewards]
    for pick in (Quantile(n_eff=3), SoftBest(), Pessimistic(), Diverse()):
        first, second = candidates(rewards), candidates(other)
        assert pick.choose(first, 1) == pick.choose(second, 1)


# Quantile


@pytest.mark.parametrize("n", range(2, 9))
def test_up_to_n_eff_candidates_the_quantile_is_the_best(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    assert Quantile(n_eff=8).choose(candidates(values), 1) == [int(values.argmax())]


@pytest.mark.parametrize(("n", "place"), [(9, 1), (16, 1), (17, 2), (32, 3), (64, 7)])
def test_beyond_that_it_is_a_fixed_quantile(n: int, place: int) -> None:
    values = np.random.default_rng(n).permutation(n)
    (row,) = Quantile(n_eff=8).choose(candidates(values), 1)
    assert values[row] == n - 1 - place


def test_the_ends_of_the_quantile() -> None:
    assert Quantile(q=1.0).choose(candidates([3, 1, 2]), 2) == [0, 2]
    assert Quantile(q=0.0).choose(candidates([3, 1, 2]), 1) == [1]
    assert Quantile(q=0.0).choose(candidates([3, 1, 2]), 2) == [2, 1]  # too few below: from below


def test_a_quantile_is_robust_where_the_best_is_fooled() -> None:
    """2 % of candidates are scored 5 too high and are 3 worse: published curve, E[gain]."""
    rng, draws = np.random.default_rng(0), 6000
    gains = {}
    for n in (8, 64):
        truth, error = rng.normal(size=(2, draws, n))
        fooled = rng.uniform(size=(draws, n)) < 0.02
        proxy = 0.6 * truth + 0.8 * error + 5.0 * fooled
        truth = truth - 3.0 * fooled
        for name, pick in (("best", Best()), ("quantile", Quantile(q=0.9))):
            rows = [pick.choose(Candidates(p, p), 1)[0] for p in proxy]
            gains[name, n] = truth[np.arange(draws), rows].mean()
    assert gains["best", 64] < gains["best", 8] - 0.5
    assert gains["quantile", 64] > gains["quantile", 8] + 0.1


# draws


def test_soft_best_draws_the_softmax() -> None:
    rewards = [0.0, 1.0, 2.5, -1.0]
    wanted = np.exp(standardise(np.array(rewards)) / 0.7)
    np.testing.assert_allclose(shares(SoftBest(0.7), rewards), wanted / wanted.sum(), atol=0.025)


@pytest.mark.parametrize("pick", [SoftBest(1e-3), Pessimistic(1e-3)], ids=repr)
def test_greedy_at_one_end(pick: Pick) -> None:
    for seed in range(50):
        found = candidates(np.random.default_rng(seed).permutation(9), seed)
        assert pick.choose(found, 1) == Best().choose(found, 1)


@pytest.mark.parametrize("pick", [SoftBest(1e6), Pessimistic(1e6)], ids=repr)
def test_uniform_at_the_other(pick: Pick) -> None:
    np.testing.assert_allclose(shares(pick, [0.0, 1.0, 5.0, -2.0]), 0.25, atol=0.03)


def test_equal_rewards_are_drawn_alike() -> None:
    for pick in (SoftBest(0.1), Pessimistic(0.1)):
        np.testing.assert_allclose(shares(pick, [2.0, 2.0, 2.0]), 1 / 3, atol=0.03)


@given(rewards=REWARDS, beta=st.sampled_from([0.01, 0.1, 0.5, 1.0, 3.0, 50.0]))
@settings(max_examples=200, deadline=None)
def test_pessimistic_weights_solve_their_equation(rewards: list[float], beta: float) -> None:
    """KKT of max sum w r - beta/2 n sum w^2 on the simplex: r - beta n w is L where w > 0."""
    values, n = np.array(rewards), len(rewards)
    weights = pessimistic_weights(values, beta)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1.0)
    levels = values - beta * n * weights
    level = levels[weights > 0].mean()
    np.testing.assert_allclose(levels[weights > 0], level, atol=1e-9)
    assert (values[weights == 0] <= level + 1e-9).all()


def test_pessimistic_weights_by_hand() -> None:
    np.testing.assert_allclose(pessimistic_weights(np.array([0.0, 1.0]), 1.0), [0.25, 0.75])
    np.testing.assert_allclose(pessimistic_weights(np.array([0.0, 1.0]), 0.5), [0.0, 1.0])


def test_weights_of_zero_come_last() -> None:
    rewards = [0.0, 10.0, 0.5, 9.0]
    alive = np.flatnonzero(pessimistic_weights(standardise(np.array(rewards)), 0.3)).tolist()
    for seed in range(20):
        found = candidates(rewards, seed)
        assert set(Pessimistic(0.3).choose(found, len(alive))) == set(alive)
        assert set(Pessimistic(0.3).choose(found, 3)) == {1, 3, 2}


# sets


@given(n=st.integers(2, 9), data=st.data())
@settings(max_examples=60, deadline=None)
def test_diverse_against_enumeration(n: int, data: Any) -> None:
    count = data.draw(st.integers(1, n - 1))
    lam = data.draw(st.sampled_from([0.1, 0.5, 2.0]))
    found = candidates(np.random.default_rng(n).normal(size=n), seed=count)
    pairs, worth = distances(found.features), standardise(found.rewards)

    def value(rows: tuple[int, ...]) -> float:
        own = sum(worth[row] for row in rows)
        return own + lam * sum(pairs[a, b] for a, b in combinations(rows, 2))

    chosen = tuple(Diverse(lam).choose(found, count))
    if count == 1:
        assert chosen == (int(worth.argmax()),)
        return
    assert value(chosen) == pytest.approx(max(map(value, combinations(range(n), count))))


def test_exchanges_come_within_a_hundredth_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    from steer.search.picks import diverse

    for seed in range(20):
        rng = np.random.default_rng(seed)
        worth, pairs = rng.normal(size=16), 0.5 * distances(rng.normal(size=(16, 4)))
        best = choose_group(worth, pairs, 4)
        with monkeypatch.context() as context:
            context.setattr(diverse, "_MOST_SETS", 0)
            near = choose_group(worth, pairs, 4)
        assert len(set(near)) == 4
        low, high = (diverse._value(worth, pairs, rows) for rows in (near, best))
        assert high - low <= 0.01 * abs(high)


def test_diverse_of_no_weight_is_the_best() -> None:
    found = candidates([1, 5, 3, 2])
    assert Diverse(0).choose(found, 2) == [1, 2]
    assert Diverse(5).choose(found, 1) == [1]


def test_diverse_leaves_out_the_twin() -> None:
    features = np.array([[0.0], [0.0], [1.0], [0.1]])
    found = Candidates(np.array([3.0, 2.9, 2.0, 0.0]), np.full(4, 0.5), features)
    assert Diverse(1.0).choose(found, 2) == [0, 2]
    assert Best().choose(found, 2) == [0, 1]


def test_distances_are_standardised_over_pairs() -> None:
    features = np.random.default_rng(0).normal(size=(7, 5))
    found = distances(features)
    upper = found[np.triu_indices(7, 1)]
    assert upper.mean() == pytest.approx(0)
    assert upper.std() == pytest.approx(1)
    plain = np.linalg.norm(features[:, None] - features[None], axis=-1)[np.triu_indices(7, 1)]
    np.testing.assert_allclose(upper, (plain - plain.mean()) / plain.std(), atol=1e-6)
    assert not distances(np.ones((4, 2))).any()


def test_the_layout_sees_where_colours_are() -> None:
    x = torch.zeros(2, 3, 16, 16)
    x[1, 0, :8] = 1.0
    layout = colour_layout(x).view(2, 3, 8, 8)
    assert layout[1, 0, :4].eq(1).all()
    assert layout[1].sum() == 32
    assert colour_layout(torch.rand(2, 5, 3, 16, 16)).shape == (2, 5 * 3 * 64)


def test_features_of_the_users_own() -> None:
    x = torch.rand(3, 3, 4, 4)
    assert torch.equal(Diverse(features=lambda images: images.flatten(1)).look(x), x.flatten(1))
    for bad in (lambda images: images, lambda images: images[:1].flatten(1), lambda images: 3):
        with pytest.raises(ValueError, match="returned"):
            Diverse(features=bad).look(x)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantile(), "give one of them"),
        (lambda: Quantile(n_eff=4, q=0.5), "give one of them"),
        (lambda: Quantile(n_eff=0.5), "n_eff=0.5"),
        (lambda: Quantile(q=1.5), "q=1.5"),
        (lambda: SoftBest(0), "temperature=0"),
        (lambda: Pessimistic(-1), "beta=-1"),
        (lambda: Pessimistic(math.inf), "beta=inf"),
        (lambda: Diverse(-0.1), "lam=-0.1"),
        (lambda: Diverse(features="clip"), "features='clip'"),  # pyright: ignore[reportArgumentType]
        (lambda: check_pick("select", "best"), "select='best'"),
    ],
)
def test_refuses_what_it_cannot_do(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_ties_go_to_the_earlier() -> None:
    assert best_first(np.array([1.0, 2.0, 2.0, 1.0])) == [1, 2, 0, 3]
    assert best_first(np.array([1.0, 2.0, 2.0, 1.0]), [3, 2, 0]) == [2, 0, 3]
