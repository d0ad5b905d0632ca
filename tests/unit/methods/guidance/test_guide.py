"""`Guide`: any search, guided; against `GradientGuidance`, by counts, and in any lane."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted_work import agrees, counting, reddish
from families import arguments, redness, seeded, shared

from steer.core.errors import RewardError
from steer.core.when import at, between, every
from steer.methods import (
    SMC,
    BestOfN,
    Budget,
    Gate,
    GradientGuidance,
    Guide,
    NoiseOptimization,
    Prune,
)
from steer.pipeline.guided import guided


PRUNE = Prune(4, (2,), (0.5,))
LATE = at(2, 3)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_around_best_of_n_it_is_gradient_guidance(family: str) -> None:
    both = [
        guided(shared(family), reddish, method=method)(**arguments(family))
        for method in (Guide(BestOfN(3), 0.3, at(1, 2)), GradientGuidance(3, 0.3, at(1, 2)))
    ]
    assert torch.equal(both[0].images, both[1].images)
    assert both[0].rewards == both[1].rewards
    assert both[0].report.ledger.decodes == both[1].report.ledger.decodes


@pytest.mark.parametrize("inner", [PRUNE, BestOfN(2), SMC(3, when=every(2))])
def test_without_strength_it_is_the_method_itself(inner: Any) -> None:
    outs = [
        guided(shared("sd", "euler_a"), reddish, method=method)(**arguments("sd"))
        for method in (inner, Guide(inner, strength=0.0))
    ]
    assert torch.equal(outs[0].images, outs[1].images)
    assert outs[0].report.base_reward == outs[1].report.base_reward


def test_only_survivors_are_guided_and_it_is_all_counted() -> None:
    pipe, method = shared("sd"), Guide(PRUNE, 0.3, LATE)
    with counting(pipe) as seen:
        out = guided(pipe, reddish, method=method)(**arguments("sd"))
    assert agrees(seen, out.report)
    plain = guided(pipe, reddish, method=PRUNE)(**arguments("sd"))
    ledger, before = out.report.ledger, plain.report.ledger
    assert ledger.denoiser_rows == before.denoiser_rows == PRUNE.cost(4) == method.cost(4)
    assert ledger.decodes - before.decodes == 2 * 2  # two survivors, two steps
    assert ledger.backward_rows == 0
    guides = out.report.trace.of("guide")
    assert [row["step"] for row in guides] == [2, 3]
    assert all(row["shift"] == pytest.approx([0.3, 0.3], rel=1e-3) for row in guides)
    assert out.report.base_reward == [None]
    assert out.rewards[0] > plain.rewards[0]
    assert all(weight.requires_grad for weight in pipe.vae.parameters())


@pytest.mark.parametrize("inner", [PRUNE, SMC(4, when=every(2))])
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "sde-dpm++", "unipc"])
def test_lanes_do_not_matter(inner: Any, scheduler: str) -> None:
    method = Guide(inner, 0.3, LATE)
    outs = [
        guided(shared("sd", scheduler), reddish, method=method, lane_width=width)(
            **arguments("sd", prompt=["a", "b"])
        )
        for width in (1, 3, 4)
    ]
    for out in outs[1:]:
        assert out.report.chosen == outs[0].report.chosen
        assert out.rewards == pytest.approx(outs[0].rewards, abs=1e-5)


def test_prompts_together_equal_prompts_apart() -> None:
    steered = guided(shared("sd", "euler_a"), reddish, method=Guide(PRUNE, 0.3, LATE))
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    both = steered(**arguments("sd", prompt=["a", "b"]) | {"generator": pair()})
    for number, text in enumerate("ab"):
        alone = steered(**arguments("sd", prompt=text) | {"generator": pair()[number]})
        assert alone.rewards[0] == pytest.approx(both.rewards[number], abs=1e-5)


def test_it_composes() -> None:
    pipe = shared("sd")
    out = guided(pipe, reddish, method=Budget(2, Guide(BestOfN(8), 0.3, LATE)), lane_width=1)(
        **arguments("sd")
    )
    assert out.report.ledger.denoiser_rows <= 8
    gate = Gate(Guide(PRUNE, 0.3, LATE), threshold=-1.0, max_rounds=3)
    assert guided(pipe, reddish, method=gate)(**arguments("sd")).accepted == [True]
    gate = Guide(Gate(PRUNE, threshold=9.0, max_rounds=2), 0.3, LATE)
    out = guided(pipe, reddish, method=gate)(**arguments("sd"))
    assert out.accepted == [False] and out.report.ledger.denoiser_rows == gate.cost(4)


def test_calls_that_the_method_differentiates_are_left_alone() -> None:
    climb = NoiseOptimization(2, through=2)
    out = guided(shared("sd"), reddish, method=Guide(climb, 0.3, between(0.0, 1.0)))(
        **arguments("sd")
    )
    assert out.report.trace.of("guide") and out.report.trace.of("iterate")


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="method=4: must be a method; write Guide"):
        Guide(4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="strength=-1"):
        Guide(PRUNE, strength=-1.0)
    with pytest.raises(ValueError, match="when='late'"):
        Guide(PRUNE, when="late")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"compute=0\.5"):
        Guide.for_compute(0.5, 20)
    with pytest.raises(RewardError, match="not differentiable"):
        guided(shared("sd"), redness, method=Guide(PRUNE))(**arguments("sd"))


def test_planned_as_prune_is() -> None:
    assert Guide.for_compute(8, 20) == Guide(Prune.for_compute(8, 20))
    assert Guide.for_compute(8, 20).cost(20) <= 160


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    pipe = shared("sd", dtype=dtype)
    out = guided(pipe, reddish, method=Guide(PRUNE, 0.3, LATE))(**arguments("sd"))
    assert out.images.dtype == dtype and out.images.isfinite().all()
    assert all(row["shift"] == pytest.approx([0.3, 0.3], rel=1e-2)
               for row in out.report.trace.of("guide"))  # fmt: skip


def test_interrupted_it_leaves_everything_as_it_was_and_runs_again() -> None:
    pipe = shared("sd")
    scheduler, steered = pipe.scheduler, guided(pipe, reddish, method=Guide(PRUNE, 0.3, LATE))
    first = steered(**arguments("sd"))

    def stop(pipe: Any, index: int, t: Any, values: Any) -> Any:
        if index == 3:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt):
        steered(**arguments("sd"), callback_on_step_end=stop)
    assert pipe.scheduler is scheduler
    assert all(weight.requires_grad for weight in pipe.vae.parameters())
    assert torch.equal(steered(**arguments("sd")).images, first.images)
