"""`RBF`: what each step spends, its rollover, its thresholds, batches, and bad input."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from counted_work import agrees, counting
from families import arguments, redness, seeded, shared
from toy import Mixture, Toy

from steer.core.errors import ThresholdError, UnsupportedSchedulerError
from steer.core.types import Name
from steer.methods import RBF, Budget, Gate
from steer.pipeline.guided import guided
from steer.rewards import Threshold
from steer.rewards.combine.ensemble import RankEnsemble
from steer.rewards.function import FunctionReward
from steer.rewards.thresholds.calibration import Calibration
from steer.search.kernels.rho import Rho


STEPS = 5
GAUSSIAN = Mixture([[0.5, -0.5]], [0.6])


def ramp(sign: float) -> FunctionReward:
    """The n-th image that is scored gets `sign * n`."""
    count = itertools.count(1)

    def reward(images: Any, prompts: Any) -> Any:
        return torch.tensor([sign * next(count) for _ in prompts])

    return FunctionReward(reward, name="ramp", needs_prompt=False)


def called(method: Any, reward: Any, steps: int = STEPS, **call: Any) -> Any:
    given = {"num_inference_steps": steps, "generator": seeded(3), "output_type": "pt", **call}
    return guided(Toy(GAUSSIAN, "euler_a"), reward, method=method, lane_width=1)(**given)


def proposals(report: Any, prompt: int = 0) -> list[int]:
    """Previews at every step."""
    seen: Counter[int] = Counter()
    for row in report.trace.of("score", prompt):
        if row["preview"]:
            seen[row["step"]] += len(row["particle"])
    return [seen[index] for index in range(report.steps)]


def test_rewards_that_rise_take_one_proposal_and_the_last_step_gets_the_rest() -> None:
    """Three a step: 3 noises, then 1, 1, 1, and what 4 quotas of 3 have left: 9."""
    assert proposals(called(RBF(3), ramp(1.0)).report) == [3, 1, 1, 1, 9]


def test_rewards_that_fall_spend_every_quota_and_roll_nothing_over() -> None:
    assert proposals(called(RBF(3), ramp(-1.0)).report) == [3] * STEPS


def test_what_is_left_rolls_over() -> None:
    """The second proposal is better at the first step, no later one is: 2, then 3 + 1, 3, 3."""
    values = iter([0, 0, 0, -1, 1, *[-2.0] * 40])

    def reward(images: Any, prompts: Any) -> Any:
        return torch.tensor([next(values) for _ in prompts])

    assert proposals(called(RBF(3), FunctionReward(reward)).report) == [3, 2, 4, 3, 3]


def test_a_step_that_found_nothing_better_does_not_lower_the_bar() -> None:
    """As published: the record stays, so a proposal above its own step's alone is not taken."""
    values = iter([5.0, 1, 2, 3, 4, *[0.0] * 40])

    def reward(images: Any, prompts: Any) -> Any:
        return torch.tensor([next(values) for _ in prompts])

    method = RBF(2)
    assert proposals(called(method, FunctionReward(reward)).report) == [2] * STEPS


def test_the_best_of_a_step_goes_on() -> None:
    report = called(RBF(4), lambda images, prompts: images[:, 0].mean((1, 2))).report
    events = report.trace.events
    for index in range(1, STEPS):
        rewards = {
            k: r
            for row in events
            if row["event"] == "score" and row["step"] == index
            for k, r in zip(row["particle"], row["reward"], strict=True)
        }
        (kept,) = next(
            row["kept"] for row in events if row["event"] == "select" and row["step"] == index
        )
        assert rewards[kept] == max(rewards.values())


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (-math.inf, [2, 1, 1, 1, 1]),
        (math.inf, [2, 2, 2, 2, 2]),
        ((-math.inf, math.inf), [2, 1, 1, 4, 2]),
        ((math.inf, -math.inf), [2, 2, 2, 1, 1]),
    ],
)
def test_a_threshold_ends_a_step(threshold: Any, expected: list[int]) -> None:
    report = called(RBF(2, threshold=threshold), ramp(-1.0)).report
    assert proposals(report) == expected
    assert report.ledger.denoiser_rows == sum(expected)


def calibration(steps: tuple[int, ...], cuts: tuple[float, ...], **more: Any) -> Calibration:
    settings: dict[str, Any] = {"count": STEPS, "noise": NOISE, "accepted": 20, "pilots": 40}
    settings |= {"threshold": Threshold(0.5, reward="ramp"), "alpha": 0.5, **more}
    noise = tuple(settings["noise"][k] for k in steps)
    return Calibration(steps=steps, cuts=cuts, **{**settings, "noise": noise})


def _noise() -> list[float]:
    seen: list[float] = []

    def watch(ctx: Any, start: Any) -> Any:
        seen.extend(step.noise_share for step in ctx.steps)
        return (yield from ctx.sample(start))

    from toy import run

    run(Toy(GAUSSIAN, "euler_a"), watch, 1, ramp(1.0), steps=STEPS)
    return seen


NOISE = _noise()


def test_a_calibration_says_where_and_what() -> None:
    """Only step 3 has a bar, tau + 6 = 6.5: rewards there are 5, 6, 7, ..., so it takes three."""
    report = called(RBF(2, threshold=calibration((3,), (6.0,))), ramp(1.0)).report
    assert proposals(report) == [2, 1, 1, 3, 1]
    never = RBF(2, threshold=calibration((3,), (100.0,)))
    assert proposals(called(never, ramp(1.0)).report) == [2, 1, 1, 4, 1]


def test_a_calibration_of_another_run_is_refused() -> None:
    with pytest.raises(ThresholdError, match="made with 5 denoiser calls, and this run makes 6"):
        called(RBF(2, threshold=calibration((3,), (0.0,))), ramp(1.0), steps=6)


def test_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"RBF: num_inference_steps gives 1 step.*BestOfN"):
        called(RBF(4), ramp(1.0), steps=1)


def test_first_proposals_are_the_plain_call() -> None:
    pipe = shared("sd", "euler_a")
    out = guided(pipe, redness, method=RBF(1, threshold=-math.inf))(**arguments("sd"))
    assert torch.equal(out.images, pipe(**arguments("sd"))[0])
    assert out.report.chosen == [(0, 0)]


@pytest.mark.parametrize("method", [RBF(3), RBF(3, batch=2), RBF(2, eta=0.7)])
def test_work_is_counted_as_it_is_done(method: RBF) -> None:
    pipe = shared("sd", "euler_a")
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=method, lane_width=1)(
            **arguments("sd", num_inference_steps=STEPS, prompt=["a", "b"])
        )
    assert agrees(seen, out.report) or seen.decodes == out.report.ledger.decodes
    assert out.report.ledger.denoiser_rows == 2 * method.cost(STEPS)
    for index in range(STEPS):
        rows = max(proposals(out.report, prompt)[index] for prompt in (0, 1))
        assert rows <= method.rows_at(STEPS, [index])


def test_rows_of_some_steps() -> None:
    assert RBF(3).rows_at(20, []) == 0
    assert RBF(3).rows_at(20, [0]) == 3
    assert RBF(3).rows_at(20, range(20)) == RBF(3).cost(20) == 60


@pytest.mark.parametrize("scheduler", ["euler_a", "dpm++2m"])
def test_lanes_do_not_matter(scheduler: str) -> None:
    pipe, method = shared("sd", scheduler), RBF(3, batch=2)
    given: dict[str, Any] = {"num_inference_steps": STEPS, "prompt": ["a", "b"]}
    outs = [
        guided(pipe, redness, method=method, lane_width=width)(
            **arguments("sd", **given, num_images_per_prompt=2)
        )
        for width in (1, 3)
    ]
    assert outs[0].report.chosen == outs[1].report.chosen
    torch.testing.assert_close(outs[1].images, outs[0].images, rtol=1e-3, atol=1e-3)


def test_prompts_together_equal_prompts_apart() -> None:
    steered = guided(shared("sd", "euler_a"), redness, method=RBF(2))
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    both = steered(**arguments("sd", prompt=["a", "b"], generator=pair()))
    for number, text in enumerate("ab"):
        alone = steered(**arguments("sd", prompt=text, generator=pair()[number]))
        assert alone.rewards[0] == pytest.approx(both.rewards[number], abs=1e-5)
        assert alone.report.chosen[0][1] == both.report.chosen[number][1]


@pytest.mark.parametrize("kernel", ["auto", "ddim", Rho("flow-sde", inner=2)])
def test_on_flow_models(kernel: Any) -> None:
    pipe, method = shared("sd3"), RBF(3, kernel=kernel)
    report = guided(pipe, redness, method=method)(**arguments("sd3")).report
    rows = 3 * report.steps
    assert rows <= report.ledger.denoiser_rows <= method.cost(report.steps)
    assert report.ledger.denoiser_rows == rows or kernel not in ("auto", "ddim")


def test_steps_without_noise_have_one_proposal_and_leave_the_rest() -> None:
    """sigma is 1, 0.9, 0.75 and 0.5 in four steps with shift 3. Where only the second step draws
    noise it gets its quota and what the first one left."""
    kernel = Rho("flow-sde", noise_window=(0.74, 0.91))
    for method, expected in (
        (RBF(3, kernel=kernel), [3, 1, 5, 1]),
        (RBF(3, kernel="ode"), [3, 1, 1, 1]),
    ):
        out = guided(shared("sd3"), redness, method=method)(**arguments("sd3"))
        assert proposals(out.report) == expected


def test_solvers_with_history_take_other_moves() -> None:
    with pytest.raises(UnsupportedSchedulerError, match=r"begins in the middle.*kernel='auto'"):
        guided(shared("sd", "sde-dpm++"), redness, method=RBF(2, kernel="solver"))(
            **arguments("sd")
        )


def test_a_gate_and_a_budget_around_it() -> None:
    out = guided(shared("sd", "euler_a"), redness, method=Gate(RBF(2), 9.0, 2))(**arguments("sd"))
    assert out.accepted == [False]
    out = guided(shared("sd", "euler_a"), redness, method=Budget(1.5, RBF(2)))(**arguments("sd"))
    assert out.report.ledger.denoiser_rows <= 1.5 * out.report.steps


def test_every_name_is_one_particle() -> None:
    report = called(RBF(3), lambda images, prompts: images[:, 0].mean((1, 2))).report
    seen: list[tuple[int | None, Name]] = []
    for row in report.trace.of("score"):
        seen += [(row["step"], (row["prompt"], k)) for k in row["particle"]]
    assert len(seen) == len(set(seen))


def test_rewards_that_only_rank_are_refused() -> None:
    ranks = RankEnsemble([(FunctionReward(redness), 1.0), (ramp(1.0), 1.0)])
    with pytest.raises(ValueError, match="RBF cannot be held against"):
        called(RBF(), ranks)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 0}, "n=0"),
        ({"batch": 1.5}, "batch=1.5"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"threshold": ()}, r"threshold=\(\)"),
        ({"threshold": (0.1, True)}, r"threshold=\(0.1, True\)"),
        ({"eta": 0}, "eta=0"),
        ({"kernel": "glass"}, "kernel='glass'"),
    ],
)
def test_bad_input(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RBF(**options)


def test_a_calibration_that_is_no_file() -> None:
    with pytest.raises(ThresholdError, match=r"calibration='none\.json'"):
        RBF(threshold="none.json")  # pyright: ignore[reportArgumentType]
