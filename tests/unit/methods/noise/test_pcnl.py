"""`PCNL`: what it costs, what it keeps, and what it refuses; its law is in `tests/law`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted_work import agrees, counting, reddish
from families import arguments, build, redness, seeded, shared

from steer.core.errors import RewardError, UnsupportedPipelineError
from steer.core.when import every
from steer.methods import PCNL, SMC, BestOfN, Budget, Gate, NoiseOptimization, Then
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward


SHORT: dict[str, Any] = {"chains": 2, "burn_in": 2, "thin": 1, "through": 2, "lam": 30.0}


def draw(method: Any, family: str = "sd", width: int | None = None, **more: Any) -> Any:
    return guided(shared(family), reddish, method=method, lane_width=width)(
        **arguments(family, **more)
    )


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_the_ledger_is_what_was_counted(family: str) -> None:
    method = PCNL(BestOfN(3), **SHORT)
    with counting(shared(family)) as seen:
        report = draw(method, family).report
    assert agrees(seen, report)
    steps = arguments(family)["num_inference_steps"]
    assert report.ledger.backward_rows == 2 * 2 * (1 + 3)  # chains, steps, the start and 3 moves
    assert report.ledger.equivalent_rows <= method.cost(steps)
    rows = report.trace.of("iterate")
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert all(len(row["accepted"]) == 2 for row in rows)


def test_lanes_and_prompts_do_not_change_a_chain() -> None:
    """Lanes of 1 and 4; prompts together or apart; two images per prompt."""
    method = PCNL(SMC(3, when=every(2)), **SHORT)
    prompts, more = ["a red circle", "a blue square"], {"num_images_per_prompt": 2}
    narrow, wide = (
        draw(method, "sd", w, prompt=prompts, generator=[seeded(k) for k in range(4)], **more)
        for w in (1, 4)
    )
    assert wide.rewards == pytest.approx(narrow.rewards, abs=2e-5)
    assert wide.report.chosen == narrow.report.chosen


def test_starts_have_names_of_their_own_and_repeat() -> None:
    first, again = (draw(PCNL(BestOfN(3), **SHORT)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.report.chosen[0] not in [(0, 0), (0, 1), (0, 2)]
    assert first.report.base_reward == [None]


def test_half_precision() -> None:
    pipe = build("sd", dtype=torch.bfloat16)
    out = guided(pipe, reddish, method=PCNL(BestOfN(2), **SHORT))(**arguments("sd"))
    assert out.images.dtype == torch.bfloat16 and out.images.isfinite().all()


def test_together_with_other_methods() -> None:
    assert draw(Gate(PCNL(BestOfN(2), **SHORT), threshold=9.0, max_rounds=2)).accepted == [False]
    assert draw(Then(BestOfN(2), PCNL(BestOfN(2), **SHORT))).rewards
    for compute in (3, 9):  # too little for the chains, and enough
        out = draw(Budget(compute, PCNL(BestOfN(2), **SHORT)))
        assert out.rewards and out.report.ledger.equivalent_rows <= compute * 4


def test_refusals() -> None:
    blind = FunctionReward(redness, differentiable=False, needs_prompt=False)
    with pytest.raises(RewardError, match=r"PCNL: .*not differentiable"):
        guided(shared("sd"), blind, method=PCNL(BestOfN(2), **SHORT))(**arguments("sd"))

    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**build("sd").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(UnsupportedPipelineError, match="starts from an image"):
        guided(pipe, reddish, method=PCNL(BestOfN(2), **SHORT))(
            "a red circle", torch.rand(1, 3, 16, 16), strength=0.5, num_inference_steps=4
        )


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("smc", {}, r"method='smc': must be a method"),
        (BestOfN(2), {"lam": 0.0}, r"lam=0\.0"),
        (BestOfN(2), {"chains": 3}, r"chains=3: .* starts from 2 noises per image.*lower chains"),
        (BestOfN(2), {"burn_in": 0}, "burn_in=0"),
        (BestOfN(2), {"thin": 1.5}, r"thin=1\.5"),
        (BestOfN(2), {"step": 5.0}, r"step=5\.0"),
        (BestOfN(2), {"pull": -1.0}, r"pull=-1\.0"),
        (BestOfN(2), {"through": 0}, "through=0"),
        (Gate(BestOfN(2), 0.5, 2), {}, "draws noises of its own.*put it outside"),
    ],
)
def test_bad_arguments(method: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PCNL(method, **given)


def test_work_is_that_of_chains_and_method() -> None:
    method = PCNL(NoiseOptimization(2, starts=4), chains=2, burn_in=5, thin=3, through=4)
    assert method.moves == 5 + 3
    plain = method.method.work(20)
    assert method.work(20).backward_rows == plain.backward_rows + 2 * 9 * 4
    assert method.work(20).gradients == plain.gradients + 2 * 9
