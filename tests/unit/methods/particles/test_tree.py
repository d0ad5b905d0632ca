"""`Tree` in pipelines: cost, invariance to batches, budgets, descent, families, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted_work import agrees, counting
from families import arguments, build, redness, seeded, shared
from hypothesis import given, settings, strategies as st

from steer.core.errors import UnsupportedPipelineError, UnsupportedSchedulerError
from steer.methods import BestOfN, Budget, Gate, Tree
from steer.pipeline.guided import guided
from steer.search.kernels.rho import Rho


KEEN = Tree(12, batch=2, widen=(1.0, 0.5))
STEPS = 6


def run(method: Any, scheduler: str = "euler_a", width: int | None = None, **more: Any) -> Any:
    steered = guided(shared("sd", scheduler), redness, method=method, lane_width=width)
    return steered(**arguments("sd", **{"num_inference_steps": STEPS, **more}))


def test_where_it_branches() -> None:
    assert Tree(1).points(50) == [10, 20, 30, 40]
    assert Tree(1).points(STEPS) == [1, 2, 3, 4]
    assert Tree(1).points(4) == [1, 2]  # the last step has no noise to choose
    assert Tree(1).points(2) == []
    assert Tree(1, at=()).points(50) == []


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 50), st.floats(1, 40), st.integers(1, 8), st.integers(1, 60))
def test_sizes(iterations: int, compute: float, batch: int, steps: int) -> None:
    method = Tree(iterations, compute, batch=batch)
    assert method.cost(steps) <= min(iterations, compute) * steps + 1e-6
    assert 1 <= method.populations[0] <= batch
    assert method.populations[0] <= method.draws <= iterations


def rows_told(report: Any, prompt: int = 0) -> int:
    """Denoiser rows of all rollouts, from where the trace says that they begin."""
    rows = 0
    for event in report.trace.of("branch", prompt):
        each = report.steps if event["step"] is None else report.steps - 1 - event["step"]
        rows += each * len(event["particle"])
    return rows


@pytest.mark.parametrize("method", [KEEN, Tree(compute=3.5, batch=3), Tree(7, policy="sample")])
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_work_is_counted_as_it_is_done(method: Tree, scheduler: str) -> None:
    pipe = shared("sd", scheduler)
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=method, lane_width=1)(
            **arguments("sd", num_inference_steps=STEPS)
        )
    assert agrees(seen, out.report)
    rows = out.report.ledger.denoiser_rows
    assert rows == rows_told(out.report) <= method.cost(STEPS)
    starts = [e for e in out.report.trace.of("branch") if e["step"] is None]
    assert rows < STEPS * out.report.ledger.reward_calls  # states were gone on from
    assert sum(len(e["particle"]) for e in starts) <= method.draws


@pytest.mark.parametrize("compute", [1, 2, 3.7, 6])
def test_compute_is_spent_and_never_exceeded(compute: float) -> None:
    """By the default lanes, which are full; what is left pays for no round of the shortest runs."""
    method = Tree(compute=compute, widen=(1.0, 0.5))
    report = run(method).report
    assert report.lane_width == method.populations[0]
    rows = report.ledger.denoiser_rows
    assert compute * STEPS - method.populations[0] < rows <= compute * STEPS


def test_compute_is_per_prompt_and_image() -> None:
    method = Tree(compute=3, batch=2)
    out = run(method, prompt=["a", "b"], num_images_per_prompt=2, width=1)
    assert len(out.images) == 4 and len(set(out.report.chosen)) == 4
    for prompt in (0, 1):
        assert rows_told(out.report, prompt) <= 2 * method.cost(STEPS)


@pytest.mark.sample
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "dpm++2m"])
@pytest.mark.parametrize("policy", ["search", "sample"])
def test_lanes_do_not_matter(scheduler: str, policy: Any) -> None:
    method = Tree(9, batch=3, widen=(1.0, 0.5), policy=policy, compute=6)
    outs = [run(method, scheduler, width, prompt=["a", "b"]) for width in (1, 3, 8)]
    for out in outs[1:]:
        assert out.report.chosen == outs[0].report.chosen
        torch.testing.assert_close(out.images, outs[0].images, rtol=1e-3, atol=1e-3)


@pytest.mark.sample
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
@pytest.mark.parametrize("choose", ["best", "sample"])
def test_prompts_together_equal_prompts_apart(scheduler: str, choose: Any) -> None:
    method = Tree(10, batch=2, widen=(1.0, 0.5), policy="sample", choose=choose)
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    both = run(method, scheduler, prompt=["a", "b"], generator=pair())
    for number, text in enumerate("ab"):
        alone = run(method, scheduler, prompt=text, generator=pair()[number])
        assert alone.rewards[0] == pytest.approx(both.rewards[number], abs=1e-5)
        assert alone.report.chosen[0][1] == both.report.chosen[number][1]


def test_it_is_anytime() -> None:
    """A longer run begins with the shorter one, so its best is no worse."""
    shorter, longer = run(Tree(4, batch=2, widen=(1.0, 0.5))), run(KEEN)
    first = [row["particle"] for row in shorter.report.trace.of("branch")]
    assert first == [row["particle"] for row in longer.report.trace.of("branch")][: len(first)]
    assert longer.rewards[0] >= shorter.rewards[0]


def test_a_budget_ends_it() -> None:
    for compute in (1, 2, 5.5):
        out = run(Budget(compute, Tree(1000, batch=4, widen=(1.0, 0.5))))
        rows = out.report.ledger.denoiser_rows
        assert rows <= compute * STEPS
        assert compute < 3 or rows > (compute - 1) * STEPS
        assert compute < 2 or out.report.ledger.reward_calls >= 1


def test_the_plain_image_is_among_the_leaves() -> None:
    """With the solver's own noise; our own moves leave it behind."""
    out = run(KEEN)
    plain = run(BestOfN(1))
    assert out.report.base_reward[0] == pytest.approx(plain.rewards[0], abs=1e-6)
    assert out.rewards[0] >= out.report.base_reward[0]
    assert run(KEEN, "ddim").report.base_reward == [None]
    assert torch.equal(run(Tree(1)).images, plain.images)


def test_without_branching_it_is_best_of_n() -> None:
    out, best = run(Tree(5, at=(), batch=2)), run(BestOfN(5))
    assert out.report.chosen == best.report.chosen
    torch.testing.assert_close(out.images, best.images, rtol=1e-4, atol=1e-4)


def test_rounds_of_a_gate_grow_trees_of_their_own() -> None:
    method = Gate(Tree(4, batch=2), threshold=9, max_rounds=2)
    trace = run(method).report.trace
    starts = [e["particle"] for e in trace.of("branch") if e["step"] is None]
    particles = [k for start in starts for k in start]
    assert len(particles) == len(set(particles))


def test_solvers_with_history_give_way_to_our_moves() -> None:
    assert run(KEEN, "sde-dpm++").report.base_reward == [None]
    with pytest.raises(UnsupportedSchedulerError, match=r"middle.*keeps history.*kernel='auto'"):
        run(Tree(4, kernel="solver"), "sde-dpm++")
    with pytest.raises(UnsupportedSchedulerError, match="DDIMScheduler draws no noise"):
        run(Tree(4, kernel="solver"), "ddim")


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize(
    ("kernel", "branches"), [("flow-sde", True), (Rho("rbf", noise_window=(0.9, 1.0)), False)]
)
def test_states_before_all_noise_is_drawn_branch(family: str, kernel: Any, branches: bool) -> None:
    method = Tree(8, batch=2, at=(0.5, 0.75), kernel=kernel)
    out = guided(shared(family), redness, method=method)(**arguments(family))
    starts = {row["step"] for row in out.report.trace.of("branch")}
    assert starts == ({None, 2} if branches else {None})
    assert out.images.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_and_types(dtype: torch.dtype) -> None:
    out = guided(shared("sdxl", "euler", dtype), redness, method=KEEN)(**arguments("sdxl"))
    assert out.images.dtype == dtype and out.images.isfinite().all()


def test_feature_caches_are_refused() -> None:
    pipe = build("sd", "euler_a")
    pipe.unet.is_cache_enabled = True
    with pytest.raises(UnsupportedPipelineError, match="feature cache"):
        guided(pipe, redness, method=Tree(4), lane_width=4)(**arguments("sd"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"iterations": None}, "iterations and compute.*Tree"),
        ({"iterations": 0}, "iterations=0"),
        ({"compute": 0.5}, r"compute=0\.5"),
        ({"compute": float("inf")}, "compute=inf"),
        ({"batch": 0}, "batch=0"),
        ({"policy": "greedy"}, "policy='greedy'.*'search'"),
        ({"lam": 0.0}, r"lam=0\.0"),
        ({"explore": -1.0}, r"explore=-1\.0"),
        ({"widen": 2.0}, r"widen=2\.0.*alpha"),
        ({"widen": (1.0, 0.0)}, r"widen=0\.0"),
        ({"at": (0.5, 0.2)}, r"at=\(0\.5, 0\.2\).*rising"),
        ({"at": 0.5}, r"at=0\.5.*rising"),
        ({"choose": "worst"}, "choose='worst'"),
        ({"eta": 2.0}, r"eta=2\.0"),
        ({"kernel": "glass"}, "kernel='glass'"),
    ],
)
def test_bad_input(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Tree(**{"iterations": 4, **options})


def test_lists_become_tuples() -> None:
    assert Tree(4, at=[0.5], widen=[1, 0.5]) == Tree(4, at=(0.5,), widen=(1, 0.5))  # pyright: ignore[reportArgumentType]
    assert Tree.for_compute(8, 20).cost(20) == 160
