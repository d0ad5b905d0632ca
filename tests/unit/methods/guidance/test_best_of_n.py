"""`BestOfNGuidance` in pipelines: identity, invariance, families, counted work, bad input."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from counted_work import agrees, counting, reddish
from families import arguments, redness, seeded, shared

from steer.core.when import at
from steer.methods import BestOfN, BestOfNGuidance, Gate
from steer.pipeline.guided import guided
from steer.rewards.combine.ensemble import RankEnsemble
from steer.rewards.function import FunctionReward


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_without_pull_it_is_best_of_n(family: str) -> None:
    pipe = shared(family)
    given = lambda: arguments(family)  # noqa: E731
    best = guided(pipe, redness, method=BestOfN(3))(**given())
    for method in (BestOfNGuidance(3, pull=0.0), BestOfNGuidance(3, when=at(0.2) & at(9))):
        with pytest.warns(UserWarning) if method.pull else nullcontext():
            out = guided(pipe, redness, method=method)(**given())
        assert torch.equal(out.images, best.images)
        assert out.report.chosen == best.report.chosen
    alone = guided(pipe, redness, method=BestOfNGuidance(1))(**given())
    assert torch.equal(alone.images, pipe(**given()).images)


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        *[("sd", name) for name in ("ddim", "euler_a", "dpm++2m", "unipc", "heun", "pndm")],
        ("sdxl", "euler"),
        ("sd3", None),
        ("flux", None),
    ],
)
def test_families_and_solvers(family: str, scheduler: Any) -> None:
    """No denoiser call is added; previews in the window and final images are judged."""
    pipe, method = shared(family, scheduler), BestOfNGuidance(4, when=at(1, 2))
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=method)(**arguments(family, num_inference_steps=5))
    assert agrees(seen, out.report) and out.images.isfinite().all()
    rows = [row["step"] for row in out.report.trace.of("guide")]
    steps = out.report.steps
    assert out.report.ledger.denoiser_rows == 4 * steps
    assert out.report.ledger.decodes == 4 * len(rows) + 4
    assert set(rows) <= {1, 2} and rows
    assert out.report.base_reward == [None]


def test_particles_end_up_closer_together() -> None:
    """The mean gap to the best one, before a later window: smaller, the stronger the pull."""
    gaps = []
    for pull in (1e-6, 0.5, 1.0):
        method = BestOfNGuidance(6, pull=pull, when=at(3))
        watch = BestOfNGuidance(6, pull=1e-6, when=at(4))
        both = _Both(method, watch)
        out = guided(shared("sd"), redness, method=both)(**arguments("sd", num_inference_steps=8))
        gap = next(row["gap"] for row in out.report.trace.of("guide") if row["step"] == 4)
        gaps.append(sum(gap) / 5)
    assert gaps[0] > 1.3 * gaps[1] > 1.3 * gaps[2]


class _Both(BestOfNGuidance):
    """Two windows with pulls of their own."""

    def __init__(self, one: BestOfNGuidance, other: BestOfNGuidance) -> None:
        super().__init__(one.n, one.pull, one.when | other.when)
        object.__setattr__(self, "parts", (one, other))

    def _pulls(self, ctx: Any) -> dict[int, float]:
        one, other = self.parts  # pyright: ignore[reportAttributeAccessIssue]
        return one._pulls(ctx) | other._pulls(ctx)


@pytest.mark.sample(1, 2)
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "dpm++2m"])
def test_lanes_do_not_matter(scheduler: str) -> None:
    outs = [
        guided(shared("sd", scheduler), redness, method=BestOfNGuidance(8), lane_width=width)(
            **arguments("sd", prompt=["a", "b"], num_inference_steps=6)
        )
        for width in (1, 3, 8)
    ]
    for out in outs[1:]:
        assert out.report.chosen == outs[0].report.chosen
        assert out.rewards == pytest.approx(outs[0].rewards, abs=1e-5)
        torch.testing.assert_close(out.images, outs[0].images, rtol=1e-3, atol=1e-3)


def test_prompts_together_equal_prompts_apart() -> None:
    steered = guided(shared("sd", "euler_a"), redness, method=BestOfNGuidance(4, when=at(1, 2)))
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    both = steered(**arguments("sd", prompt=["a", "b"]) | {"generator": pair()})
    for number, text in enumerate("ab"):
        alone = steered(**arguments("sd", prompt=text) | {"generator": pair()[number]})
        assert alone.rewards[0] == pytest.approx(both.rewards[number], abs=1e-5)
        assert alone.report.chosen[0][1] == both.report.chosen[number][1]


def test_images_have_leaders_of_their_own() -> None:
    out = guided(shared("sd"), redness, method=BestOfNGuidance(3, when=at(1)))(
        **arguments("sd", num_images_per_prompt=2)
    )
    (row,) = out.report.trace.of("guide")
    (score,) = (row for row in out.report.trace.of("score") if row["step"] == 1)
    for group in (0, 1):
        own = list(range(group, 6, 2))
        best = max(own, key=lambda k: score["reward"][k])
        assert {row["best"][k] for k in own} == {score["particle"][best]}
        assert row["gap"][best] == 0
    assert len(set(out.report.chosen)) == 2


def test_rewards_that_compare_candidates() -> None:
    """Ranks are among the particles of a prompt, so the leader is that of the reward itself."""
    rank = RankEnsemble([(FunctionReward(redness), 1.0)])
    method = BestOfNGuidance(4, when=at(1))
    leaders = [
        guided(shared("sd"), reward, method=method)(**arguments("sd")).report.trace.of("guide")
        for reward in (redness, rank)
    ]
    assert leaders[0] == leaders[1]


def test_gates_and_half_precision() -> None:
    method = Gate(BestOfNGuidance(2), threshold=9, max_rounds=2)
    pipe = shared("sd", dtype=torch.bfloat16)
    out = guided(pipe, redness, method=method)(**arguments("sd"))
    assert out.images.dtype == torch.bfloat16 and out.accepted == [False]
    assert out.report.ledger.denoiser_rows == method.cost(4)
    half = guided(shared("sdxl", dtype=torch.float16), reddish, method=BestOfNGuidance(3))
    assert half(**arguments("sdxl")).images.isfinite().all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 0}, "n=0"),
        ({"pull": 1.2}, "pull=1.2"),
        ({"pull": -0.2}, "pull=-0.2"),
        ({"pull": math.inf}, "pull=inf"),
        ({"when": (0.4, 0.5)}, "when=.*step predicate"),
    ],
)
def test_bad_input(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        BestOfNGuidance(**{"n": 4, **options})


def test_cost_and_window() -> None:
    assert BestOfNGuidance(4).cost(20) == 80
    assert BestOfNGuidance.for_compute(8.5, 20).n == 8
    for steps in (1, 4, 20, 50, 100):
        assert 1 <= len(BestOfNGuidance(4).when.indices(steps)) <= 6
