"""The tree of one prompt: values, shares and widening, against recursions written out here."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from steer.methods.particles.tree_nodes import Grove, Node, Policy, log_mean_exp


DTS = Policy(lam=1.3, explore=0.0, sample=True, widen=(1.0, 0.7), standardise=False)
X = torch.zeros(1)


def rollout(grove: Grove, node: Node, number: int) -> None:
    """As the search does it: a child at every depth below, the last one a leaf."""
    top, name = node, (0, number)
    while node.depth < len(grove.rows):
        node = grove.remember(node.child(name, X, X))
    top.growing -= 1


def grown(policy: Policy, rounds: int, batch: int, seed: int) -> tuple[Grove, dict]:
    grove, draw, rewards = Grove(0, [20, 12, 5], seed), random.Random(seed), {}
    for number in range(rounds):
        first = grove.pick(policy, 0)
        picks = [first, *(grove.pick(policy, 0, first.depth) for _ in range(batch - 1))]
        for k, node in enumerate(picks):
            rewards[0, number * batch + k] = draw.gauss(-5.0, 1.0)  # all negative
            rollout(grove, node, number * batch + k)
        grove.back_up(policy, rewards)
    return grove, rewards


def value(node: Node, rewards: dict, lam: float) -> float:
    """Soft value by recursion, in float64 on numbers as they are."""
    if not node.children:
        return rewards[node.name]
    terms = [math.exp(lam * value(child, rewards, lam)) for child in node.children]
    return math.log(sum(terms) / len(terms)) / lam


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 8), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_values_and_shares(rounds: int, batch: int, sample: bool, seed: int) -> None:
    policy = Policy(1.3, 0.5, sample, (1.0, 0.7), False)
    grove, rewards = grown(policy, rounds, batch, seed)
    assert len(grove.leaves) == rounds * batch == grove.root.visits
    assert grove.root.energy == pytest.approx(1.3 * value(grove.root, rewards, 1.3))
    shares = grove.log_shares().exp()
    assert float(shares.sum()) == pytest.approx(1)
    for leaf, share in zip(grove.leaves, shares.tolist(), strict=True):
        node, exact = leaf, 1.0
        while node.parent is not None:
            weigh = {c.name: math.exp(1.3 * value(c, rewards, 1.3)) for c in node.parent.children}
            exact *= weigh[node.name] / sum(weigh.values())
            node = node.parent
        assert share == pytest.approx(exact)


def test_a_flat_tree_weighs_as_importance_sampling_does() -> None:
    grove, rewards = Grove(0, [20], 0), {(0, k): float(k) for k in range(5)}
    for k in range(5):
        rollout(grove, grove.pick(DTS, 0), k)
    grove.back_up(DTS, rewards)
    exact = torch.tensor([1.3 * k for k in range(5)], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(grove.log_shares().exp(), exact)


@settings(deadline=None, max_examples=15)
@given(st.floats(0.5, 3.0), st.floats(0.2, 0.9), st.booleans())
def test_children_follow_visits(factor: float, power: float, sample: bool) -> None:
    """At most C N^alpha children, rounded up; the deepest take every visit."""
    grove, _ = grown(Policy(1.0, 1.0, sample, (factor, power), False), 30, 1, 1)

    def check(node: Node) -> None:
        if node.depth < 2:
            assert len(node.children) < factor * node.visits**power + 1
        elif node.children:
            assert len(node.children) == node.visits
        for child in node.children:
            if child.depth < 3:
                check(child)

    check(grove.root)
    assert len({leaf.name for leaf in grove.leaves}) == 30


def test_a_round_widens_states_with_room() -> None:
    """Picks of one depth pass by siblings that are full, as long as any is not."""
    policy = Policy(2.0, 0.0, False, (1.0, 0.7), True)
    grove, rewards = Grove(0, [20, 12, 5], 0), {(0, k): float(k) for k in range(8)}
    for k in range(2):
        rollout(grove, grove.pick(policy, 0, 0), k)
    grove.back_up(policy, rewards)
    picks = [grove.pick(policy, 0, 1) for _ in range(3)]
    assert [node.name for node in picks] == [(0, 1), (0, 1), (0, 0)]
    assert [len(node.children) + node.growing for node in grove.root.children] == [2, 3]


def test_the_published_widening_draws_fresh_noise_36_times() -> None:
    grove, _ = grown(Policy(2.0, 1.0, False, (2.0, 0.8), True), 36, 1, 0)
    assert len(grove.root.children) == 36
    assert grove.pick(Policy(2.0, 1.0, False, (2.0, 0.8), True), 0).depth > 0


def test_search_descends_to_the_best_of_bad_rewards() -> None:
    """Values that start at 0 would send it anywhere but to the best when rewards are negative."""
    policy = Policy(2.0, 0.0, False, (1.0, 0.01), True)
    grove, rewards = Grove(0, [20, 12], 0), {}
    for k, reward in enumerate((-9.0, -3.0, -7.0)):
        rollout(grove, grove.pick(policy, 0, 0), k)
        rewards[0, k] = reward
    grove.back_up(policy, rewards)
    assert grove.pick(policy, 0).name == (0, 1)


def test_picks_of_a_round_spread() -> None:
    policy = Policy(2.0, 6.0, False, (1.0, 0.01), True)
    grove, rewards = Grove(0, [20, 12], 0), {(0, k): 0.1 * k for k in range(3)}
    for k in range(3):
        rollout(grove, grove.pick(policy, 0, 0), k)
    grove.back_up(policy, rewards)
    picks = [grove.pick(policy, 0, 1) for _ in range(3)]
    assert len({node.name for node in picks}) == 3


def test_lam_is_per_standard_deviation() -> None:
    """The same tree for rewards in other units; no tilt where all rewards are equal."""
    policy = Policy(2.0, 1.0, True, (1.0, 0.7), True)
    shares = []
    for scale, shift in ((1.0, 0.0), (0.01, 5.0)):
        grove, rewards = grown(policy, 6, 2, 3)
        grove.spread = 0.0
        grove.back_up(policy, {name: scale * value + shift for name, value in rewards.items()})
        shares.append(grove.log_shares())
    torch.testing.assert_close(shares[0], shares[1])
    grove, rewards = grown(policy, 6, 2, 3)
    grove.spread = 0.0
    grove.back_up(policy, dict.fromkeys(rewards, 0.3))
    assert grove.root.energy == 0 and all(leaf.energy == 0 for leaf in grove.leaves)


@given(st.lists(st.floats(-800, 800), min_size=1, max_size=9))
def test_log_mean_exp(values: list[float]) -> None:
    exact = np.logaddexp.reduce(np.array(values)) - math.log(len(values))
    assert log_mean_exp(values) == pytest.approx(float(exact), abs=1e-9)
