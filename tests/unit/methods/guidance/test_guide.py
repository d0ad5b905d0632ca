"""`Guide`: any search, guided; identity, families, counted work, and any lane."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted_work import agrees, counting, reddish
from families import arguments, build, redness, seeded, shared
from torch import Tensor

from steer.core.errors import GradientError, RewardError, UnsupportedPipelineError
from steer.core.when import at, between, every
from steer.methods import (
    SMC,
    BestOfN,
    Budget,
    Gate,
    GradientProposal,
    Guide,
    NoiseOptimization,
    Prune,
)
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward


PRUNE = Prune(4, (2,), (0.5,))
LATE = at(2, 3)
KEEN = Guide(BestOfN(2), strength=0.3, when=between(0.3, 0.8))


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


@pytest.mark.sample
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


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [("sd", "ddim"), ("sd", "sde-dpm++"), ("sdxl", "unipc"), ("sd3", None), ("flux", None)],
)
def test_without_strength_or_window_it_is_the_plain_call(family: str, scheduler: Any) -> None:
    pipe = shared(family, scheduler)
    plain = pipe(**arguments(family)).images
    out = guided(pipe, reddish, method=Guide(BestOfN(1), strength=0.0))(**arguments(family))
    assert torch.equal(out.images, plain)
    with pytest.warns(UserWarning, match=r"when=at\(9\) holds at no step of"):
        out = guided(pipe, reddish, method=Guide(BestOfN(1), when=at(9)))(**arguments(family))
    assert torch.equal(out.images, plain) and out.report.base_reward[0] is not None


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("through", ["x0", "denoiser"])
def test_families(family: str, through: Any) -> None:
    """Rewards rise over the plain image's, and the books say what was seen."""
    pipe = shared(family)
    method = Guide(BestOfN(2), strength=0.3, when=at(1, 2), through=through)
    plain = guided(pipe, reddish, method=BestOfN(2))(**arguments(family))
    with counting(pipe) as seen:
        out = guided(pipe, reddish, method=method)(**arguments(family))
    assert out.rewards[0] > plain.rewards[0]
    assert agrees(seen, out.report)
    assert out.report.ledger.denoiser_rows == 2 * 4
    assert out.report.ledger.backward_rows == (4 if through == "denoiser" else 0)
    assert out.report.ledger.equivalent_rows <= method.cost(4)
    assert out.report.base_reward == [None]  # no particle is the plain call's any more
    guides = out.report.trace.of("guide")
    assert [row["step"] for row in guides] == [1, 2]
    assert all(row["shift"] == pytest.approx([0.3, 0.3], rel=1e-3) for row in guides)
    assert all(weight.requires_grad for weight in pipe.vae.parameters())


@pytest.mark.sample
@pytest.mark.parametrize("through", ["x0", "denoiser"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "dpm++2m", "sde-dpm++", "unipc", "heun"])
def test_lanes_do_not_matter_to_the_gradient(scheduler: str, through: Any) -> None:
    method = Guide(BestOfN(8), when=at(2), through=through)
    outs = [
        guided(shared("sd", scheduler), reddish, method=method, lane_width=width)(
            **arguments("sd", prompt=["a", "b"])
        )
        for width in (1, 3, 8)
    ]
    for out in outs[1:]:
        assert out.report.chosen == outs[0].report.chosen
        assert out.rewards == pytest.approx(outs[0].rewards, abs=1e-5)
        torch.testing.assert_close(out.images, outs[0].images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("inner", [PRUNE, SMC(4, when=every(2)), Prune(6, (2,), (0.5,), strides=2)])
def test_searches_guided_through_the_denoiser(inner: Any) -> None:
    """Lanes with padding, and rows that drop out."""
    pipe, method = shared("sd", "euler_a"), Guide(inner, 0.3, LATE, through="denoiser")
    outs = []
    for width in (1, 3):
        with counting(pipe) as seen:
            call = guided(pipe, reddish, method=method, lane_width=width)
            outs.append(call(**arguments("sd", prompt=["a", "b"])))
        assert agrees(seen, outs[-1].report)
    assert outs[0].report.chosen == outs[1].report.chosen
    assert outs[0].rewards == pytest.approx(outs[1].rewards, abs=1e-5)
    assert outs[0].report.ledger.backward_rows > 0
    assert outs[0].report.ledger.equivalent_rows <= 2 * method.cost(4)


def test_a_budget_around_counts_what_is_differentiated() -> None:
    method = Guide(BestOfN(8), 0.3, at(1, 2), through="denoiser")
    out = guided(shared("sd"), reddish, method=Budget(5, method), lane_width=1)(**arguments("sd"))
    assert out.report.ledger.backward_rows > 0
    assert out.report.ledger.equivalent_rows <= 5 * 4


@pytest.mark.parametrize("through", ["x0", "denoiser"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_of_either_gradient(dtype: torch.dtype, through: Any) -> None:
    method = Guide(BestOfN(1), strength=0.3, when=at(2), through=through)
    out = guided(shared("sdxl", dtype=dtype), reddish, method=method)(**arguments("sdxl"))
    plain = guided(shared("sdxl", dtype=dtype), reddish, method=BestOfN(1))(**arguments("sdxl"))
    assert out.images.dtype == dtype and out.images.isfinite().all()
    assert out.rewards[0] > plain.rewards[0]


def test_rewards_without_a_gradient() -> None:
    with pytest.raises(RewardError, match=r"not differentiable.*NoiseSearch.*zero-order.*BestOfN"):
        guided(shared("sd"), redness, method=KEEN)(**arguments("sd"))
    cut = FunctionReward(lambda images, prompts: redness(images.detach(), prompts),
                         differentiable=True)  # fmt: skip
    with pytest.raises(RewardError, match="carry no gradient"):
        guided(shared("sd"), cut, method=KEEN)(**arguments("sd"))
    with pytest.raises(RewardError, match="not differentiable"):
        guided(shared("sd"), redness, method=SMC(2, when=every(2), proposal=GradientProposal()))(
            **arguments("sd")
        )


def test_gradients_that_are_not_finite() -> None:
    def broken(images: Tensor, prompts: Any) -> Tensor:
        return (images[:, 0].mean((1, 2)) * 0).sqrt()

    reward = FunctionReward(broken, name="broken", differentiable=True)
    with pytest.raises(
        GradientError, match=r"'broken' is not finite for prompt 0 .*'a red circle'"
    ):
        guided(shared("sd"), reward, method=KEEN)(**arguments("sd"))


def test_a_denoiser_without_gradients() -> None:
    pipe = build("sd")
    own = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: torch.no_grad()(own)(*args, **kwargs)
    method = Guide(BestOfN(1), when=at(1), through="denoiser")
    with pytest.raises(UnsupportedPipelineError, match=r"no gradient comes back.*through='x0'"):
        guided(pipe, reddish, method=method)(**arguments("sd"))


@pytest.mark.parametrize("inner", [BestOfN(3), PRUNE])
def test_one_inner_step_and_a_constant_schedule_are_the_default(inner: Any) -> None:
    usual, several = (
        guided(shared("sd"), reddish, method=method)(**arguments("sd"))
        for method in (Guide(inner, 0.3, LATE), Guide(inner, 0.3, LATE, inner=3, schedule="noise"))
    )
    twice = 2 * sum(len(row["shift"]) for row in usual.report.trace.of("guide"))
    assert several.report.ledger.decodes == usual.report.ledger.decodes + twice
    shifts = [row["shift"][0] for row in several.report.trace.of("guide")]
    assert 0.3 > shifts[0] > shifts[1] > 0  # shorter where there is less noise


def test_cost() -> None:
    assert Guide(BestOfN(3)).cost(10) == 30
    assert Guide(BestOfN(1), when=at(4), through="denoiser").cost(10) == 12
    assert Guide(BestOfN(1), when=at(0), through="denoiser").cost(10) == 13
    assert Guide(BestOfN(1), strength=0, through="denoiser").cost(10) == 10
    assert Guide(BestOfN(1), when=at(40), through="denoiser").cost(10) == 10


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_share_of_the_velocity_is_for_flow_models(family: str) -> None:
    """FMRG-E: three inner steps at x0, on the early steps."""
    method = Guide(BestOfN(1), 2.0, at(0, 1), inner=3, schedule="velocity")
    plain = guided(shared(family), reddish, method=BestOfN(1))(**arguments(family))
    out = guided(shared(family), reddish, method=method)(**arguments(family))
    assert out.rewards[0] > plain.rewards[0]
    with pytest.raises(UnsupportedPipelineError, match=r"no flow model.*use schedule='noise'"):
        guided(shared("sd"), reddish, method=method)(**arguments("sd"))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="method=4: must be a method; write Guide"):
        Guide(4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="strength=-1"):
        Guide(PRUNE, strength=-1.0)
    with pytest.raises(ValueError, match="when='late'"):
        Guide(PRUNE, when="late")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"through='unet'.*'x0'"):
        Guide(PRUNE, through="unet")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="inner=0"):
        Guide(PRUNE, inner=0)
    with pytest.raises(ValueError, match="inner=2 with through='denoiser'"):
        Guide(PRUNE, inner=2, through="denoiser")
    with pytest.raises(ValueError, match=r"schedule='linear'.*'constant'"):
        Guide(PRUNE, schedule="linear")  # pyright: ignore[reportArgumentType]
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
