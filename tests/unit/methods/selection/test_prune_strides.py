"""`Prune(strides=...)`: against the pipeline's own solver on the same points; its cost and cuts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from counted_work import agrees, counting, reddish
from families import SCHEDULERS, arguments, redness, seeded, shared
from hypothesis import given, settings, strategies as st

import steer
from steer.core.errors import UnsupportedSchedulerError
from steer.core.when import at
from steer.methods import Budget, Gate, Guide, NoiseOptimization, Prune, Then
from steer.pipeline.estimate import estimate
from steer.pipeline.guided import guided


SMALL = Prune(4, (2, 1), (0.5, 0.75), strides=3)


@pytest.mark.parametrize(
    ("method", "steps", "rows"),
    [
        (Prune(12, (3, 1), (0.65, 0.8), 4), 20, 12 * 4 + 3 * 3 + 4),
        (Prune(12, (3, 1), (0.65, 0.8), 50), 20, 12 * 13 + 3 * 3 + 4),  # no longer strides
        (Prune(6, (2,), (0.5,), 2), 20, 6 * 2 + 2 * 10),
        (Prune(6, (2,), (0.5,), 4), 4, 6 * 2 + 2 * 2),
        (Prune(6, (2,), (0.5,), 4), 2, 6 + 2),  # the cut comes after the first call
        (Prune(6, (2,), (0.5,), 4), 1, 6),
        (Prune(3, (), (), 4), 10, 30),
    ],
)
def test_cost(method: Prune, steps: int, rows: int) -> None:
    assert method.cost(steps) == rows


@settings(deadline=None, max_examples=300)
@given(st.floats(1, 40), st.integers(1, 120), st.floats(0, 30))
def test_plans_never_exceed_compute_nor_leave_much_of_it(
    compute: float, steps: int, guidance: float
) -> None:
    plan = Prune.for_compute(compute, steps, drafts=True, guidance=guidance)
    assert steps <= plan.cost(steps) <= compute * steps + 1e-6
    if steps >= 8:
        assert plan.cost(steps) > (compute - 1) * steps


@pytest.mark.parametrize(
    ("compute", "start", "keep"),
    [(1, 3, (2, 1)), (2, 7, (4, 1)), (4, 15, (8, 2)), (7, 27, (14, 3)), (16, 60, (32, 8))],
)
def test_what_is_planned_for_20_steps(compute: int, start: int, keep: tuple[int, int]) -> None:
    plan = Prune(start, keep, (0.65, 0.7), strides=4)
    assert Prune.for_compute(compute, 20, drafts=True) == plan


def test_strong_guidance_gets_more_strides() -> None:
    found = [
        Prune.for_compute(4, 50, drafts=True, guidance=scale).strides
        for scale in (0, 1, 3.5, 5, 7.5, 10, 15)
    ]
    assert found == [4, 4, 4, 5, 6, 8, 11]
    for wrong in (math.nan, math.inf, "7.5", True):
        with pytest.raises(ValueError, match=r"guidance=.* must be"):
            Prune.for_compute(4, 50, drafts=True, guidance=wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("family", "given", "strides"),
    [
        ("sd", {"guidance_scale": 7.5}, 6),
        ("sd", {}, 6),  # its default
        ("sd", {"guidance_scale": 3.5}, 4),
        ("sd", {"guidance_scale": 1.0}, 4),
        ("sd3", {"guidance_scale": 12.0}, 15),  # flows: 40% of the steps, and 5/4 of the scale
        ("flux", {"guidance_scale": 12.0}, 10),  # embedded: one prediction
        ("flux", {"true_cfg_scale": 12.0, "negative_prompt": "b"}, 15),
    ],
)
def test_compute_is_planned_with_the_guidance_of_the_call(
    family: str, given: dict[str, Any], strides: int
) -> None:
    steered = guided(shared(family), redness, compute=8, compute_unit="rows")
    call = {**arguments(family, num_inference_steps=24, output_type="pt"), **given}
    assert steered(**call).report.method.strides == strides
    assert estimate(steered, 24).method.strides == strides  # the next one


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_default_is_better_at_the_pipeline_s_own_guidance() -> None:
    """SD's 7.5, which short runs do not stand: drafts of four strides would lose here."""
    pipe = steer.shapes.pipeline()
    captions = steer.shapes.prompts("held_out", 8, seed=9)
    rewards = [
        torch.tensor(
            guided(pipe, "shapes", compute=compute)(
                captions,
                num_inference_steps=20,
                generator=[seeded(k) for k in range(8)],
            ).rewards
        )
        for compute in (1, 4)
    ]
    assert rewards[1].mean() > rewards[0].mean() + 0.02


@pytest.mark.parametrize("strides", [2, 3, 4])
def test_it_is_the_solver_on_fewer_points(strides: int) -> None:
    """Euler's method takes DDIM's moves, and can be asked for any timesteps by a plain call."""
    pipe = shared("sd", "euler")
    call, again = (
        arguments("sd", num_inference_steps=10, output_type="pt", generator=seeded(0))
        for _ in range(2)
    )
    pipe.scheduler.set_timesteps(10)
    times = pipe.scheduler.timesteps.tolist()
    chosen = [times[i * 5 // (strides - 1)] for i in range(strides - 1)] + times[5:]
    wanted = pipe(**{**call, "num_inference_steps": None}, timesteps=chosen).images
    drawn = guided(pipe, redness, method=Prune(1, (1,), (0.6,), strides))(**again)
    assert torch.allclose(drawn.images, wanted, atol=1e-4)


def test_with_a_stride_per_step_it_is_prune() -> None:
    outs = [
        guided(shared("sd"), redness, method=method)(
            **arguments("sd", num_inference_steps=8, prompt=["a", "b"], output_type="pt")
        )
        for method in (Prune(5, (2, 1), (0.5, 0.75)), Prune(5, (2, 1), (0.5, 0.75), strides=9))
    ]
    assert torch.allclose(outs[0].images, outs[1].images, atol=1e-4)
    assert outs[0].report.ledger.denoiser_rows == outs[1].report.ledger.denoiser_rows


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_it_costs_what_it_says(family: str) -> None:
    pipe = shared(family)
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=SMALL)(**arguments(family, num_inference_steps=8))
    assert agrees(seen, out.report)
    assert out.report.ledger.denoiser_rows == SMALL.cost(8) == 4 * 3 + 2 * 2 + 2
    assert out.report.base_reward == [None]


@pytest.mark.sample(1, 3, 4)
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "sde-dpm++", "unipc", "heun", "dpm++2m"])
def test_lanes_and_company_do_not_matter(scheduler: str) -> None:
    pipe = shared("sd", scheduler)
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    call = arguments("sd", num_inference_steps=8)
    outs = [
        guided(pipe, redness, method=SMALL, lane_width=width)(
            **call | {"prompt": ["a", "b"], "generator": pair()}
        )
        for width in (1, 3, 4)
    ]
    for out in outs[1:]:
        assert out.report.chosen == outs[0].report.chosen
        assert out.rewards == pytest.approx(outs[0].rewards, abs=1e-5)
    for number, text in enumerate("ab"):
        alone = guided(pipe, redness, method=SMALL)(
            **call | {"prompt": text, "generator": pair()[number]}
        )
        assert alone.rewards[0] == pytest.approx(outs[0].rewards[number], abs=1e-5)


@pytest.mark.sample
@pytest.mark.parametrize("scheduler", ["heun", "kdpm2"])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.4, 0.5, 0.7])
def test_second_order_solvers_take_over_where_they_can(scheduler: str, fraction: float) -> None:
    pipe, method = shared("sd", scheduler), Prune(4, (2,), (fraction,), 3)
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=method)(**arguments("sd", num_inference_steps=8))
    assert agrees(seen, out.report) and out.images.isfinite().all()
    assert out.report.ledger.denoiser_rows == method.cost(out.report.steps)


def test_the_best_previews_go_on() -> None:
    out = guided(shared("sd"), redness, method=Prune(6, (3, 1), (0.5, 0.75), 3))(
        **arguments("sd", num_inference_steps=8)
    )
    trace = out.report.trace
    first, second = (row for row in trace.of("score", 0) if row["preview"])
    assert (first["step"], second["step"]) == (3, 5)
    scores = dict(zip(first["particle"], first["reward"], strict=True))
    ranked = sorted(scores, key=lambda k: -scores[k])
    cuts = [row["kept"] for row in trace.of("select", 0) if "kept" in row]
    assert cuts[0] == second["particle"] and len(cuts) == 2
    assert sorted(ranked[:3]) == sorted(cuts[0])


@pytest.mark.parametrize(
    "outer",
    [
        Guide(SMALL, 0.3, at(4, 5)),
        Gate(SMALL, threshold=9.0, max_rounds=2),
        Then(SMALL, NoiseOptimization(2, through=2)),
        Budget(3, SMALL),
    ],
)
def test_it_composes(outer: Any) -> None:
    out = guided(shared("sd"), reddish, method=outer)(**arguments("sd", num_inference_steps=8))
    assert out.images.isfinite().all() and out.report.ledger.denoiser_rows <= outer.cost(8)


def test_the_plain_call_is_left_as_it_is() -> None:
    pipe = shared("sd")
    before = pipe(**arguments("sd")).images
    guided(pipe, redness, method=SMALL)(**arguments("sd"))
    assert torch.equal(pipe(**arguments("sd")).images, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd", "flux"])
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    out = guided(shared(family, dtype=dtype), redness, method=SMALL)(
        **arguments(family, num_inference_steps=8)
    )
    assert out.images.dtype == dtype and out.images.isfinite().all()


def test_interrupted_it_leaves_everything_as_it_was_and_runs_again() -> None:
    pipe = shared("sd")
    scheduler, steered = pipe.scheduler, guided(pipe, redness, method=SMALL)
    first = steered(**arguments("sd", num_inference_steps=8))

    def stop(pipe: Any, index: int, t: Any, values: Any) -> Any:
        if index == 3:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt):
        steered(**arguments("sd", num_inference_steps=8), callback_on_step_end=stop)
    assert pipe.scheduler is scheduler
    again = steered(**arguments("sd", num_inference_steps=8))
    assert torch.equal(again.images, first.images)


def test_several_images() -> None:
    out = guided(shared("sd"), redness, method=SMALL)(
        **arguments("sd", num_inference_steps=8, num_images_per_prompt=2)
    )
    assert len(out.images) == 2 and not torch.equal(out.images[0], out.images[1])
    assert out.report.ledger.denoiser_rows == 2 * SMALL.cost(8)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="strides=1: a draft needs at least 2 calls"):
        Prune(strides=1)
    with pytest.raises(ValueError, match=r"strides=2\.5"):
        Prune(strides=2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="a population cannot grow"):
        Prune(2, (3,), (0.5,))
    heun = shared("sd", "heun")
    with pytest.raises(ValueError, match="strides=2: the scheduler asks twice per step"):
        guided(heun, redness, method=Prune(4, (2,), (0.4,), 2))(
            **arguments("sd", num_inference_steps=8)
        )
    pipe = shared("sd")
    pipe.scheduler = SCHEDULERS["pndm"]()
    with pytest.raises(UnsupportedSchedulerError, match="PNDMScheduler cannot"):
        guided(pipe, redness, method=SMALL)(**arguments("sd", num_inference_steps=8))
