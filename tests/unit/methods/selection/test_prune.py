"""`Prune`: its cost, its cuts, and that the survivors are sampled as if alone."""

from __future__ import annotations

import math

import pytest
import torch
from families import arguments, redness, shared
from hypothesis import given, settings, strategies as st

from steer.methods import BestOfN, Prune, for_compute
from steer.pipeline.guided import guided


@pytest.mark.parametrize(
    ("method", "steps", "rows"),
    [
        (Prune(), 64, 256),  # the paper's: 8 to step 16, 4 to step 32, 2 to 64
        (Prune(), 20, 8 * 5 + 4 * 5 + 2 * 10),
        (Prune(), 4, 8 + 4 + 2 * 2),
        (Prune(), 2, 8 + 2),  # both cuts after the only call there is
        (Prune(), 1, 8),
        (Prune(3, (), ()), 10, 30),
    ],
)
def test_cost(method: Prune, steps: int, rows: int) -> None:
    assert method.cost(steps) == rows


@settings(deadline=None, max_examples=300)
@given(st.floats(1, 40), st.integers(1, 120))
def test_plans_never_exceed_compute(compute: float, steps: int) -> None:
    plan = Prune.for_compute(compute, steps)
    assert plan.cost(steps) <= compute * steps + 1e-6
    assert for_compute(compute, steps).cost(steps) <= compute * steps + 1e-6
    if steps >= 8:
        assert plan.cost(steps) > (compute - 1) * steps  # and leave little unspent


@settings(deadline=None, max_examples=100)
@given(st.floats(4, 40), st.integers(1, 60), st.integers(1, 4))
def test_plans_for_a_width_need_no_padding(compute: float, steps: int, width: int) -> None:
    plan = for_compute(compute, steps, lane_width=width)
    assert all(size % width == 0 for size in plan.populations)
    assert plan.cost(steps) <= compute * steps + 1e-6


def test_default_plan() -> None:
    assert for_compute(4, 20) == Prune(6, (2, 1), (0.5, 0.65))
    assert for_compute(4, 4) == BestOfN(4)
    assert for_compute(1.9, 20) == BestOfN(1)


def test_few_steps_that_draw_all_noise_anew_are_shortened() -> None:
    """Three are drawn, where there are more and two candidates are paid for."""
    few = {"drafts": True, "renoises": True}
    assert for_compute(4, 4, **few) == BestOfN(5, strides=3)
    assert for_compute(1.5, 4, **few) == BestOfN(2, strides=3)
    assert for_compute(4, 7, lane_width=2, **few) == BestOfN(8, strides=3)
    assert for_compute(4, 8, **few) == BestOfN(10, strides=3)
    assert for_compute(4, 11, **few) == BestOfN(14, strides=3)
    assert for_compute(1.4, 4, **few) == BestOfN(1)
    assert for_compute(1, 4, **few) == BestOfN(1)
    assert for_compute(4, 3, **few) == BestOfN(4)
    assert for_compute(4, 12, **few) == for_compute(4, 12, drafts=True)
    assert for_compute(4, 4, renoises=True) == BestOfN(4)


def test_a_flow_takes_short_runs_to_the_end() -> None:
    """40% of its steps, and 5/4 of its scale of guidance, where that is fewer than all."""
    flow = {"drafts": True, "flow": True}
    assert for_compute(4, 20, **flow) == BestOfN(10, strides=8)
    assert for_compute(4, 28, guidance=5.0, **flow) == BestOfN(9, strides=12)
    assert for_compute(4, 12, guidance=7.5, **flow) == BestOfN(4, strides=10)
    assert for_compute(4, 20, guidance=7.5, **flow) == BestOfN(8, strides=10)
    assert for_compute(4, 20, lane_width=4, **flow) == BestOfN(8, strides=8)
    assert for_compute(1.2, 20, **flow) == BestOfN(3, strides=8)
    assert for_compute(1, 20, **flow) == for_compute(1.1, 12, guidance=7, **flow) == BestOfN(1)
    assert for_compute(4, 35, **flow) == BestOfN(10, strides=14)
    with pytest.raises(ValueError, match="guidance=nan"):
        for_compute(4, 20, guidance=math.nan, **flow)
    strong = {"drafts": True, "guidance": 12.0}
    assert for_compute(4, 12, flow=True, **strong) == for_compute(4, 12, **strong)
    assert for_compute(4, 20, flow=True) == for_compute(4, 20)
    assert for_compute(4, 8, **flow) == for_compute(4, 8, drafts=True)


@pytest.mark.sample
@pytest.mark.parametrize("scheduler", ["ddim", "dpm++2m", "unipc", "euler_a", "sde-dpm++"])
@pytest.mark.parametrize("width", [1, 2])
def test_survivors_are_sampled_as_if_alone(scheduler: str, width: int) -> None:
    """Pruning permutes rows of stateful and stochastic solvers: nothing may leak between them."""
    pipe = shared("sd", scheduler)
    steps = arguments("sd", num_inference_steps=6)
    method = Prune(start=4, keep=(2, 2), at=(0.4, 0.7))
    out = guided(pipe, redness, method=method, lane_width=width)(**steps)
    everyone = guided(pipe, redness, method=BestOfN(4), lane_width=1)
    all_of_them = everyone(**arguments("sd", num_inference_steps=6)).report.trace
    alone = [value for row in all_of_them.of("score") for value in row["reward"]]
    winner = out.report.chosen[0][1]
    assert out.rewards[0] == pytest.approx(alone[winner], abs=1e-5)


def test_it_keeps_the_best_previews_and_adds_no_calls() -> None:
    pipe = shared("sd")
    method = Prune(start=6, keep=(3, 1), at=(0.25, 0.5))
    given_ = arguments("sd", num_inference_steps=8, prompt=["a", "b"])
    out = guided(pipe, redness, method=method)(**given_)
    trace, ledger = out.report.trace, out.report.ledger
    assert ledger.denoiser_rows == 2 * method.cost(8)
    assert ledger.reward_calls == 2 * (6 + 3) + 2  # previews, and the two that are returned
    for prompt in (0, 1):
        first, second = (r for r in trace.of("score", prompt) if r["preview"])
        assert (first["step"], second["step"]) == (1, 3)
        cut = trace.of("select", prompt)[0]
        ranked = sorted(first["particle"], key=lambda k, r=first: -r["reward"][k])
        assert sorted(ranked[:3]) == cut["kept"] == second["particle"]
        assert sorted(cut["kept"] + cut["dropped"]) == first["particle"]


def test_several_images_survive_together() -> None:
    given_ = arguments("sd", num_inference_steps=8, num_images_per_prompt=2)
    method = Prune(start=4, keep=(1,), at=(0.5,))
    out = guided(shared("sd"), redness, method=method)(**given_)
    assert len(out.images) == 2
    assert out.report.ledger.denoiser_rows == 2 * method.cost(8)
    assert not torch.equal(out.images[0], out.images[1])
