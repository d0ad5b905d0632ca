"""Replays against every subset, against order statistics, and against the methods themselves."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from pools import made_pools

from steer.methods import BestOfN, Prune
from steer.pipeline.planning.kinds import Kind, kinds_of
from steer.pipeline.planning.replay import Pool


def exhaustive(pool: Pool, plan: Prune) -> tuple[float, float]:
    """Reward and judge of a plan's winner, mean over prompts and every choice of particles."""
    found = []
    for prompt, rewards in enumerate(pool.rewards):
        for drawn in combinations(range(pool.n), plan.start):
            alive = list(drawn)
            for step, keep in sorted(plan.cuts(pool.kind.count).items()):
                seen = pool.previews[prompt, pool.kind.looks.index(step)]
                alive = sorted(alive, key=lambda k: -seen[k])[:keep]
            best = max(alive, key=lambda k: rewards[k])
            found.append((rewards[best], pool.judged[prompt, best]))
    reward, judged = np.mean(found, 0)
    return float(reward), float(judged)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_best_of_n_is_exact(n: int) -> None:
    pool = made_pools(prompts=5, n=6, honest=0.5).by_name["full"]
    found = pool.best_of(n)
    assert (found.reward.mean(), found.judged.mean()) == pytest.approx(
        exhaustive(pool, Prune(n, (), ()))
    )


@pytest.mark.parametrize(
    ("plan", "kind"),
    [
        (Prune(4, (2,), (0.5,)), "full"),
        (Prune(5, (3, 1), (0.3, 0.65)), "full"),
        (Prune(6, (2, 1), (0.5, 0.8)), "full"),
        (Prune(5, (2,), (0.65,), 4), "draft 4-12"),
        (Prune(6, (3, 1), (0.5, 0.8), 4), "draft 4-9"),
    ],
)
def test_cuts_are_those_of_the_method(plan: Prune, kind: str) -> None:
    pools = made_pools(prompts=12, n=6, knows=0.6, honest=0.7)
    wanted = exhaustive(pools.by_name[kind], plan)
    found = pools.replay(plan)
    exact = plan.start == 6  # else a mean over 256 draws of 12 prompts
    for values, value in zip(found, wanted, strict=True):
        assert values.mean() == pytest.approx(value, abs=1e-9 if exact else 0.05)


def test_gaussian_rewards() -> None:
    """The mean of the largest of n standard normals; with a judge, times its correlation."""
    pools = made_pools(prompts=4000, n=8, honest=0.6)
    for n, mean in ((1, 0.0), (2, 0.56419), (4, 1.02938), (8, 1.42360)):
        found = pools.replay(BestOfN(n))
        assert found.reward.mean() == pytest.approx(mean, abs=0.03)
        assert found.judged.mean() == pytest.approx(0.6 * mean, abs=0.05)


def test_previews_that_know_all_and_nothing() -> None:
    knowing, blind = made_pools(prompts=600, knows=1.0), made_pools(prompts=600, knows=0.0)
    plan = Prune(6, (2,), (0.5,))
    assert knowing.replay(plan).reward.mean() == pytest.approx(
        knowing.replay(BestOfN(6)).reward.mean(), abs=0.02
    )
    assert blind.replay(plan).reward.mean() == pytest.approx(
        blind.replay(BestOfN(2)).reward.mean(), abs=0.05
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 20, 50, 99])
def test_kinds_fit_the_methods(count: int) -> None:
    kinds = kinds_of(count)
    assert len({kind.name for kind in kinds}) == len(kinds) and kinds[0].name == "full"
    for kind in kinds:
        if kind.strides is None:
            assert kind.rows == count
        elif kind.looks:
            plan = Prune(1, (1,), kind.at[:1], kind.strides)
            assert list(plan.cuts(count)) == [kind.looks[0]]
            assert kind.rows == plan.cost(count) < count
        else:
            assert kind.rows == BestOfN(1, kind.strides).cost(count) < count
        for step, at in zip(kind.looks, kind.at, strict=True):
            assert list(Prune(2, (1,), (at,)).cuts(count)) == [step]


def test_what_pilots_of_a_kind_spend() -> None:
    work = Kind(20, 4, (12, 15), (0.65, 0.8)).work(8, judged=True)
    assert (work.rows, work.decodes, work.previews, work.scores) == (8 * 11, 8, 16, 16 + 16)
