"""What methods say that they spend, against what the ledger saw; and plans with real costs."""

from __future__ import annotations

from typing import Any

import pytest
from counted_work import reddish
from families import arguments, shared
from hypothesis import given, settings, strategies as st

from steer.core.costs import Costs
from steer.core.when import at, between
from steer.methods import (
    PCNL,
    RBF,
    SMC,
    Adaptive,
    Beam,
    BestOfN,
    BestOfNGuidance,
    Blockwise,
    Budget,
    DepthFirst,
    EvoSearch,
    Gate,
    GradientProposal,
    Guide,
    LookaheadGuidance,
    Method,
    NoiseOptimization,
    NoiseSearch,
    NoiseTilt,
    Prune,
    Then,
    Tree,
)
from steer.pipeline.guided import guided


STEPS = 6
LATE = between(0.5, 0.9)
METHODS: list[Method] = [
    BestOfN(1),
    BestOfN(3),
    Adaptive(1),
    Adaptive(5, price=0),
    Adaptive(6, price=0.1, batch=3),
    Adaptive(3, price=0, least=1, share=True),
    Gate(Adaptive(4), 2.0, 2),
    BestOfN(3, strides=2),
    Prune(4, (2, 1), (0.4, 0.7)),
    Prune(6, (2,), (0.7,), strides=2),
    Gate(BestOfN(2), 2.0, 3),
    Budget(3, BestOfN(8)),
    Then(BestOfN(2), NoiseOptimization(2, through=2)),
    NoiseSearch(n=2, rounds=2),
    NoiseSearch(n=2, rounds=2, through=2),
    NoiseSearch(strategy="paths", n=4, keep=2, rounds=2),
    NoiseOptimization(3, through=2),
    NoiseOptimization(3, through=2, gradient="zero-order"),
    NoiseOptimization(2, through=2, finish="both", monitor=reddish),
    NoiseOptimization(3, through=2, leash=1.0, keep_start=False),
    NoiseOptimization(2, through=2, leash=1.0, gradient="zero-order"),
    PCNL(BestOfN(3), chains=2, burn_in=2, through=2),
    PCNL(SMC(4), chains=1, burn_in=1, thin=1, through=1, checkpoint=True),
    BestOfNGuidance(3),
    LookaheadGuidance(n=2, lookaheads=4, through=2),
    Guide(Prune(4, (2,), (0.5,)), when=LATE, inner=2),
    Guide(BestOfN(2), when=at(0, 2), through="denoiser"),
    SMC(3),
    SMC(2, proposal=GradientProposal()),
    SMC(2, kernel=NoiseTilt()),
    SMC(2, kernel=NoiseTilt(through="denoiser")),
    Beam(2),
    Beam((4, 2), lookahead=2),
    Blockwise(3, block=2),
    Tree(5, batch=2),
    RBF(3),
    RBF(2, threshold=0.5, batch=2),
    EvoSearch((3, 2, 2), at=(0.0, 0.5), elites=2),
    DepthFirst(3),
    DepthFirst(3, threshold=(0.5, 9.0, 9.0), at=(0.5, 0.8), depth=0.3),
    DepthFirst(2.7, threshold=9.0, depth=0.2),
]
SD15 = Costs(1.606, 2.515, 2.515, 0.335, 1.606, 2.85, "flops")
SDXL = Costs(13.5, 10.47, 10.47, 0.335, 13.5, 10.8, "flops")
SIZED = [Beam, BestOfN, BestOfNGuidance, Blockwise, Guide, LookaheadGuidance, NoiseOptimization]
SIZED += [Adaptive, DepthFirst, EvoSearch, NoiseSearch, Prune, RBF, SMC, Tree]


@pytest.mark.sample
@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("images", [1, 2])
def test_no_more_than_it_says(method: Method, images: int) -> None:
    call = arguments("sd") | {"num_inference_steps": STEPS, "output_type": "pt"}
    call["num_images_per_prompt"] = images
    ledger = guided(shared("sd"), reddish, method=method)(**call).report.ledger
    work = method.work(STEPS) * images
    assert ledger.denoiser_rows <= work.rows
    assert ledger.backward_rows <= work.backward_rows
    assert ledger.gradients <= work.gradients
    assert ledger.decodes <= work.decodes + work.previews
    assert ledger.reward_calls <= work.scores
    assert method.cost(STEPS) == work.equivalent_rows // images


@pytest.mark.parametrize("method", SIZED)
@pytest.mark.parametrize("costs", [SD15, SDXL], ids=["sd15", "sdxl"])
@settings(max_examples=30, deadline=None)
@given(compute=st.floats(1, 64), steps=st.integers(4, 50))
def test_plans_stay_within_their_budget(
    method: Any, costs: Costs, compute: float, steps: int
) -> None:
    try:
        plan = method.for_compute(compute, steps, costs)
    except ValueError as error:
        assert f"compute={compute!r}" in str(error)
        return
    if not costs.fits(plan.work(steps), compute, steps):  # then it is as small as it gets
        assert plan == method.for_compute(1, steps, costs)


def test_plans_differ_where_costs_do() -> None:
    for make in (Prune.for_compute, Guide.for_compute):
        rows, dear = make(4, 20), make(4, 20, SD15)
        assert dear != rows and dear.cost(20) < rows.cost(20)
