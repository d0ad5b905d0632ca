"""`GradientGuidance` in pipelines: identity, invariance, families, counted work, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from counted_work import agrees, counting, reddish
from families import arguments, build, redness, seeded, shared
from torch import Tensor

from steer.core.errors import (
    GradientError,
    RewardError,
    UnsupportedPipelineError,
    UnsupportedSchedulerError,
)
from steer.core.when import at, between, every
from steer.methods import SMC, BestOfN, GradientGuidance, GradientProposal
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward


KEEN = GradientGuidance(2, strength=0.3, when=between(0.3, 0.8))
SOLVERS = ["ddim", "euler_a", "dpm++2m", "sde-dpm++", "unipc", "heun"]


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [("sd", "ddim"), ("sd", "sde-dpm++"), ("sdxl", "unipc"), ("sd3", None), ("flux", None)],
)
def test_without_strength_or_window_it_is_the_plain_call(family: str, scheduler: Any) -> None:
    pipe = shared(family, scheduler)
    plain = pipe(**arguments(family)).images
    out = guided(pipe, reddish, method=GradientGuidance(1, strength=0.0))(**arguments(family))
    assert torch.equal(out.images, plain)
    with pytest.warns(UserWarning, match=r"when=at\(9\) holds at no step of"):
        out = guided(pipe, reddish, method=GradientGuidance(1, when=at(9)))(**arguments(family))
    assert torch.equal(out.images, plain) and out.report.base_reward[0] is not None


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("through", ["x0", "denoiser"])
def test_families(family: str, through: Any) -> None:
    """Rewards rise over the plain image's, and the books say what was seen."""
    pipe = shared(family)
    method = GradientGuidance(2, strength=0.3, when=at(1, 2), through=through)
    plain = guided(pipe, reddish, method=BestOfN(2))(**arguments(family))
    with counting(pipe) as seen:
        out = guided(pipe, reddish, method=method)(**arguments(family))
    assert out.rewards[0] > plain.rewards[0]
    assert agrees(seen, out.report)
    assert out.report.ledger.equivalent_rows == method.cost(4)
    assert out.report.ledger.backward_rows == (4 if through == "denoiser" else 0)
    assert out.report.base_reward == [None]  # no particle is the plain call's any more
    guides = out.report.trace.of("guide")
    assert [row["step"] for row in guides] == [1, 2]
    assert all(row["shift"] == pytest.approx([0.3, 0.3], rel=1e-3) for row in guides)
    assert all(weight.requires_grad for weight in pipe.vae.parameters())


@pytest.mark.parametrize("scheduler", SOLVERS)
def test_lanes_do_not_matter(scheduler: str) -> None:
    outs = [
        guided(
            shared("sd", scheduler), reddish, method=GradientGuidance(8, when=at(2)), lane_width=w
        )(**arguments("sd", prompt=["a", "b"]))
        for w in (1, 3, 8)
    ]
    for out in outs[1:]:
        assert out.report.chosen == outs[0].report.chosen
        assert out.rewards == pytest.approx(outs[0].rewards, abs=1e-5)
        torch.testing.assert_close(out.images, outs[0].images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"recur": 1}, {"through": "denoiser"}])
def test_prompts_together_equal_prompts_apart(options: dict[str, Any]) -> None:
    method = GradientGuidance(2, when=at(1), **options)
    steered = guided(shared("sd", "euler_a"), reddish, method=method)
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    both = steered(**arguments("sd", prompt=["a", "b"]) | {"generator": pair()})
    for number, text in enumerate("ab"):
        alone = steered(**arguments("sd", prompt=text) | {"generator": pair()[number]})
        assert alone.rewards[0] == pytest.approx(both.rewards[number], abs=1e-5)
        assert alone.report.chosen[0][1] == both.report.chosen[number][1]


@pytest.mark.parametrize("through", ["x0", "denoiser"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, through: Any) -> None:
    method = GradientGuidance(1, strength=0.3, when=at(2), through=through)
    out = guided(shared("sdxl", dtype=dtype), reddish, method=method)(**arguments("sdxl"))
    plain = guided(shared("sdxl", dtype=dtype), reddish, method=BestOfN(1))(**arguments("sdxl"))
    assert out.images.dtype == dtype and out.images.isfinite().all()
    assert out.rewards[0] > plain.rewards[0]


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++2m"])
def test_recurrence(scheduler: str) -> None:
    method = GradientGuidance(1, strength=0.1, when=at(1, 2), recur=2)
    pipe = shared("sd", scheduler)
    with counting(pipe) as seen:
        out = guided(pipe, reddish, method=method)(**arguments("sd"))
    assert agrees(seen, out.report)
    assert out.report.ledger.denoiser_rows == method.cost(4) == 8
    assert [row["step"] for row in out.report.trace.of("guide")] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("scheduler", ["unipc", "heun", "pndm", "kdpm2"])
def test_recurrence_needs_a_solver_without_a_path(scheduler: str) -> None:
    with pytest.raises(UnsupportedSchedulerError, match=r"recur=1.*DPMSolverMultistepScheduler"):
        guided(shared("sd", scheduler), reddish, method=GradientGuidance(1, recur=1))(
            **arguments("sd")
        )


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
    method = GradientGuidance(1, when=at(1), through="denoiser")
    with pytest.raises(UnsupportedPipelineError, match=r"no gradient comes back.*through='x0'"):
        guided(pipe, reddish, method=method)(**arguments("sd"))


def test_as_a_proposal() -> None:
    proposal = KEEN.proposal(pull=0.2)
    assert proposal == GradientProposal(through="x0", when=KEEN.when, pull=0.2)
    method = SMC(4, when=every(2), proposal=proposal)
    pipe = shared("sd", "euler")
    with counting(pipe) as seen:
        out = guided(pipe, reddish, method=method)(**arguments("sd"))
    assert agrees(seen, out.report)
    assert out.report.ledger.equivalent_rows == method.cost(4)
    assert math.isfinite(out.rewards[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 0}, "n=0"),
        ({"strength": -0.1}, "strength=-0.1"),
        ({"strength": math.nan}, "strength=nan"),
        ({"when": 3}, "when=3.*step predicate"),
        ({"through": "unet"}, "through='unet'.*'x0'"),
        ({"inner": 0}, "inner=0"),
        ({"inner": 2, "through": "denoiser"}, "inner=2 with through='denoiser'"),
        ({"recur": -1}, "recur=-1"),
        ({"schedule": "linear"}, "schedule='linear'.*'constant'"),
    ],
)
def test_bad_input(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GradientGuidance(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lam": 0.0}, "lam=0.0"),
        ({"pull": -1.0}, "pull=-1.0"),
        ({"pull": None}, "lam=None and pull=None"),
        ({"temper": 0.0}, "temper=0.0"),
        ({"eta": 1.5}, "eta=1.5"),
        ({"through": "vae"}, "through='vae'"),
        ({"when": 0.5}, "when=0.5"),
    ],
)
def test_bad_proposals(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GradientProposal(**options)


def test_cost() -> None:
    assert GradientGuidance(3, when=between(0.5, 1)).cost(10) == 30
    assert GradientGuidance(3, when=between(0.55, 1), recur=2).cost(10) == 3 * (10 + 2 * 5)
    assert GradientGuidance(1, when=at(4), through="denoiser").cost(10) == 12
    assert GradientGuidance(1, when=at(0), through="denoiser").cost(10) == 13
    assert GradientGuidance(1, strength=0, through="denoiser", recur=1).cost(10) == 10
    assert GradientGuidance.for_compute(4.5, 20).n == 4
    with pytest.raises(ValueError, match=r"compute=0\.5"):
        GradientGuidance.for_compute(0.5, 20)
