"""Which plan is taken: within its budget, the best by the judge, the cheaper of two level ones."""

from __future__ import annotations

import numpy as np
import pytest
from pools import made_pools

from steer.core.costs import ROWS, Costs
from steer.methods import BestOfN, Prune
from steer.pipeline.planning.choice import Chooser, choose_decoder
from steer.pipeline.planning.families import plans_of
from steer.pipeline.planning.kinds import kinds_of
from steer.pipeline.planning.knowledge import crowds, foresight, shorter


SD15 = Costs(1.606, 2.515, 2.515, 0.335, 1.606, 2.85, "flops")
BUDGETS = (1.25, 2.0, 3.0, 4.0, 8.0)


@pytest.mark.parametrize("costs", [ROWS, SD15], ids=["rows", "sd15"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_every_plan_is_within_its_budget_and_as_wide_as_it_may_be(
    costs: Costs, budget: float
) -> None:
    for kind in kinds_of(20):
        found = list(plans_of(kind, 8, budget, costs))
        assert all(costs.fits(plan.work(20), budget, 20) for plan in found)
        for plan in found:
            if isinstance(plan, BestOfN) and plan.n < 8:
                assert not costs.fits(BestOfN(plan.n + 1, plan.strides).work(20), budget, 20)
            if isinstance(plan, Prune):
                assert max(plan.keep) < plan.start <= 8


def test_short_runs_where_they_lose_nothing() -> None:
    """Candidates of a quarter of the steps are as good: nothing else is worth its price."""
    plan = Chooser(made_pools(loss=0.0, knows=0.0), BUDGETS, ROWS).at(2.0)
    assert plan.method == BestOfN(8, strides=5) and plan.calls == 2.0 and plan.pays


def test_every_step_where_steps_are_what_counts() -> None:
    """Each missing call costs half a deviation: no stride, and blind previews cut nothing."""
    plan = Chooser(made_pools(loss=0.5, knows=0.0, prompts=200), BUDGETS, ROWS).at(4.0)
    assert plan.method == BestOfN(4) and plan.pays
    assert plan.gain.mean == pytest.approx(1.03, abs=0.15)


def test_pruning_where_previews_know_all() -> None:
    """Knowing at 30% of the steps: eight begin, one goes on, for 3.1 plain calls."""
    plan = Chooser(made_pools(loss=0.5, knows=1.0, prompts=200), BUDGETS, ROWS).at(4.0)
    assert plan.method == Prune(8, (1,), (0.3,))
    assert plan.calls == pytest.approx((8 * 6 + 14) / 20)


def test_searching_that_does_not_pay() -> None:
    """A judge that the reward knows nothing of: the plain call, and the table says so."""
    chooser = Chooser(made_pools(honest=0.0, loss=0.01, knows=0.5), BUDGETS, ROWS)
    for budget in BUDGETS:
        plan = chooser.at(budget)
        assert plan.method == BestOfN(1) and not plan.pays
        assert plan.gain.low is not None and plan.gain.low <= 0
        assert plan.reward_gain.mean == 0


def test_gains_are_looked_at_on_other_prompts() -> None:
    """The best of many worthless plans looks good where it was chosen; held out it does not."""
    apparent, held_out = [], []
    for seed in range(16):
        chooser = Chooser(made_pools(honest=0.0, prompts=8, seed=seed), BUDGETS, ROWS)
        apparent.append((chooser.judged - chooser.judged[0]).mean(1).max())
        held_out.append(chooser.at(8.0).gain.mean)
    assert np.mean(apparent) > 0.1 and abs(np.mean(held_out)) < 0.05


def test_where_more_candidates_only_please_the_reward() -> None:
    """The judge falls with the square of what a candidate's reward exceeds 0.5 by."""
    pool = made_pools(prompts=400, n=8).by_name["full"]
    pool.judged[:] = pool.rewards - np.maximum(pool.rewards - 0.5, 0) ** 2
    found = crowds(pool)
    assert [crowd.n for crowd in found] == list(range(1, 9))
    rewards = [crowd.reward.mean for crowd in found]
    assert rewards == sorted(rewards)
    peak = max(found, key=lambda crowd: crowd.judge.mean)
    assert 2 <= peak.n < 8 and peak.behind.mean == 0
    assert found[-1].behind.low is not None and found[-1].behind.low > 0


def test_what_previews_and_fewer_steps_are_worth() -> None:
    pools = made_pools(prompts=200, knows=0.0, loss=0.1)
    assert all(abs(row.spearman.mean) < 0.1 for row in foresight(pools))
    assert all(row.spearman.mean == pytest.approx(1) for row in foresight(made_pools(knows=1.0)))
    rows = shorter(pools)
    assert [row.calls for row in rows] == [5, 8, 10, 15, 20]
    for row in rows:
        assert row.gain.mean == pytest.approx(-0.1 * (20 - row.calls))


@pytest.mark.parametrize(("knows", "taken"), [(0.9, "tiny"), (-0.9, "")])
def test_the_cheaper_decoder_where_it_knows_as_much(knows: float, taken: str) -> None:
    """Short runs are worthless here, so that plans have to look at previews."""
    dear, cheap = (Costs(row=1.0, preview=p, unit="flops") for p in (0.5, 0.1))
    own = Chooser(made_pools(knows=0.9, loss=1.0, prompts=80), (2, 4), dear)
    tiny = Chooser(made_pools(knows=knows, loss=1.0, prompts=80), (2, 4), cheap)
    name, known = choose_decoder({"": own, "tiny": tiny}, (2, 4))
    assert name == taken
    assert {d.name: d.cost for d in known} == {"": 0.5, "tiny": 0.1}
    assert choose_decoder({"": own}, (2, 4)) == ("", ())


def test_budgets_that_no_plan_tells_apart() -> None:
    chooser = Chooser(made_pools(n=4), (2, 4, 64), ROWS)
    assert chooser.told_apart((2, 4, 32, 64)) == [2, 4]
    assert chooser.told_apart((2, 3, 32, 64)) == [2, 3, 32]
