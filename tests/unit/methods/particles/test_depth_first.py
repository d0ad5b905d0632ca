"""`DepthFirst`: the plain call, its budget, where it goes back to, what it returns, bad input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from counted_work import agrees, counting
from families import arguments, redness, seeded, shared
from toy import Mixture, Toy, points, run

from steer.core.errors import ThresholdError, UnsupportedSchedulerError
from steer.methods import BestOfN, Budget, DepthFirst, Gate
from steer.pipeline.guided import guided
from steer.rewards import Threshold
from steer.rewards.combine.ensemble import RankEnsemble
from steer.rewards.function import FunctionReward
from steer.rewards.thresholds.calibration import Calibration


STEPS = 8
INF = math.inf


def called(method: Any, scheduler: str = "ddim", width: int | None = None, **more: Any) -> Any:
    reward = more.pop("reward", redness)
    steered = guided(shared("sd", scheduler), reward, method=method, lane_width=width)
    return steered(**arguments("sd", **{"num_inference_steps": STEPS, **more}))


def given_rewards(*values: float) -> FunctionReward:
    """These rewards, in the order in which images are scored; then zeros."""
    left = itertools.chain(values, itertools.repeat(0.0))

    def reward(images: Any, prompts: Any) -> Any:
        return torch.tensor([next(left) for _ in prompts])

    return FunctionReward(reward, name="given", needs_prompt=False)


def went_back_to(report: Any, prompt: int = 0) -> list[int]:
    return [row["step"] for row in report.trace.of("branch", prompt)]


def judged_at(report: Any, prompt: int = 0) -> list[int | None]:
    return [
        row["step"]
        for row in report.trace.of("score", prompt)
        for _ in row["particle"]
    ]  # fmt: skip


@pytest.mark.sample
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "dpm++2m", "unipc", "heun"])
@pytest.mark.parametrize("method", [DepthFirst(3, threshold=-INF), DepthFirst(1), DepthFirst(1.1)])
def test_where_nothing_fails_it_is_the_plain_call(scheduler: str, method: DepthFirst) -> None:
    """Bit for bit, with the user's generator left as the plain call leaves it."""
    given: dict[str, Any] = {"num_inference_steps": 4, "prompt": ["a", "b"]}
    given["num_images_per_prompt"] = 2
    pipe, outs, states = shared("sd", scheduler), [], []
    for call in (pipe, guided(pipe, redness, method=method)):
        arguments_ = arguments("sd", **given)
        outs.append(call(**arguments_)[0])
        states.append(arguments_["generator"].get_state())
    assert torch.equal(*outs) and torch.equal(*states)


def test_passing_costs_a_plain_call_and_its_looks() -> None:
    report = called(DepthFirst(4, threshold=-1e9)).report
    assert report.ledger.denoiser_rows == STEPS
    assert judged_at(report) == [3, 4, None] and went_back_to(report) == []


@pytest.mark.parametrize("threshold", [None, INF])
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "dpm++2m"])
def test_where_everything_fails_the_budget_is_spent_and_the_best_is_finished(
    scheduler: str, threshold: float | None
) -> None:
    """4 steps to the first look, 4 retries of 3 rows (2 steps back), 4 steps to the end: 20."""
    method = DepthFirst(2.5, threshold=threshold, depth=0.25)
    pipe = shared("sd", scheduler)
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=method)(**arguments("sd", num_inference_steps=STEPS))
    report = out.report
    assert agrees(seen, report)
    assert report.ledger.denoiser_rows == method.cost(STEPS) == 20
    assert went_back_to(report) == [1] * 4
    looks = [row for row in report.trace.of("score") if row["step"] == 3]
    rewards = {row["particle"][0]: row["reward"][0] for row in looks}
    assert report.chosen == [(0, max(rewards, key=rewards.__getitem__))]


def test_the_last_retry_is_as_deep_as_the_budget_allows() -> None:
    """21 rows: after 4 retries of 3 rows, one is left, which pays for nothing; 22 pay for one."""
    assert called(DepthFirst(21 / 8, depth=0.25)).report.ledger.denoiser_rows == 20
    report = called(DepthFirst(22 / 8, depth=0.25)).report
    assert report.ledger.denoiser_rows == 22
    assert went_back_to(report) == [1, 1, 1, 1, 2]
    report = called(DepthFirst(21 / 8, threshold=INF, depth=0.25)).report
    assert went_back_to(report) == [1, 1, 1, 1, 7] and report.ledger.denoiser_rows == 21


@pytest.mark.parametrize("place", range(3))
def test_the_best_state_is_resumed_as_if_it_had_never_been_left(place: int) -> None:
    """If that is the plain call's, its image is the plain one, also with fresh noise per step."""
    values = [0.0] * 3
    values[place] = 1.0
    method = DepthFirst(2, depth=0.25)  # 16 rows: 8, and 2 retries of 3
    out = called(method, "euler_a", reward=given_rewards(*values))
    plain = shared("sd", "euler_a")(**arguments("sd", num_inference_steps=STEPS))[0]
    assert torch.equal(out.images, plain) == (place == 0)


def test_it_goes_on_from_the_first_that_passes() -> None:
    """Below, below, above; then above at the second look, and the image passes."""
    method = DepthFirst(4, threshold=(0.5, 0.6, 0.7), depth=0.25)
    report = called(method, reward=given_rewards(0.1, 0.4, 0.5, 0.6, 0.8)).report
    assert judged_at(report) == [3, 3, 3, 4, None]
    assert went_back_to(report) == [1, 1]
    assert report.ledger.denoiser_rows == STEPS + 2 * 3
    assert report.rewards == [pytest.approx(0.8)]


def test_a_finished_image_is_taken_back_too_and_the_best_one_returned() -> None:
    """Images 0.5, 0.6, 0.4 below 0.9: six steps back each time, until nothing is left."""
    method = DepthFirst(2.5, threshold=(-INF, -INF, 0.9), depth=0.75)
    report = called(method, reward=given_rewards(0.5, 0.6, 0.4)).report
    assert went_back_to(report) == [2, 2]
    assert report.rewards == [pytest.approx(0.6)]
    assert report.ledger.denoiser_rows == STEPS + 2 * 6


def test_never_worse_than_the_best_that_is_finished() -> None:
    for seed in range(4):
        method = DepthFirst(4, threshold=(0.55, 0.56, 0.57), depth=0.4)
        report = called(method, generator=seeded(seed)).report
        finished = [
            r for row in report.trace.of("score") if not row["preview"] for r in row["reward"]
        ]
        assert report.rewards[0] == max(finished, default=report.rewards[0])
        assert report.ledger.denoiser_rows <= method.cost(STEPS)


def calibration(ctx_noise: list[float], **more: Any) -> Calibration:
    settings: dict[str, Any] = {
        "threshold": Threshold(0.5, reward="given"),
        "alpha": 0.5,
        "steps": (2, 5),
        "cuts": (-0.2, -0.1),
        "count": STEPS,
        "noise": (ctx_noise[2], ctx_noise[5]),
        "accepted": 20,
        "pilots": 40,
    }
    return Calibration(**{**settings, **more})


def noise_shares() -> list[float]:
    seen: list[float] = []

    def watch(ctx: Any, start: Any) -> Any:
        seen.extend(step.noise_share for step in ctx.steps)
        return (yield from ctx.sample(start))

    run(Toy(Mixture([[0.0]], [1.0])), watch, 1, given_rewards(), steps=STEPS)
    return seen


def test_a_calibration_has_steps_and_thresholds_of_its_own() -> None:
    """Bars 0.3 and 0.4 at steps 2 and 5, 0.5 for the image."""
    method = DepthFirst(4, threshold=calibration(noise_shares()), depth=0.25)
    reward = given_rewards(0.2, 0.35, 0.39, 0.41, 0.49, 0.45, 0.51)
    steered = guided(Toy(Mixture([[0.0]], [1.0])), reward, method=method)
    report = steered(num_inference_steps=STEPS, generator=seeded(1), output_type="pt").report
    assert judged_at(report) == [2, 2, 5, 5, None, None, None]
    assert went_back_to(report) == [0, 3, 6, 6]  # from the end to behind step 5
    with pytest.raises(ThresholdError, match="made with 8 denoiser calls, and this run makes 9"):
        steered(num_inference_steps=9, output_type="pt")


def test_retries_follow_the_law_of_the_sampler() -> None:
    """Back up and down again: of Gaussian data, finished images keep mean and variance."""
    mean, std = 0.5, 0.6
    names = [str(k) for k in range(400)]
    toy, count = Toy({name: Mixture([[mean]], [std]) for name in names}), itertools.count()

    def later(images: Any, prompts: Any) -> Any:
        return torch.tensor([float(next(count)) for _ in prompts])

    def sampled(method: Any) -> Any:
        reward = FunctionReward(later, needs_prompt=False)
        given = {"num_inference_steps": 20, "generator": seeded(4), "output_type": "pt"}
        return points(guided(toy, reward, method=method)(names, **given).images)[:, 0]

    method = DepthFirst(1.6, threshold=(-INF, INF), at=(0.9,), depth=0.5)
    x, plain = sampled(method), sampled(BestOfN(1))
    assert float((x - plain).abs().min()) > 0  # every one was taken back
    assert float(x.mean()) == pytest.approx(mean, abs=4 * std / 20)
    assert float(x.std()) == pytest.approx(float(plain.std()), rel=0.2)  # 4 standard errors


@pytest.mark.parametrize("scheduler", ["euler_a", "dpm++2m"])
def test_lanes_do_not_matter(scheduler: str) -> None:
    method = DepthFirst(3, threshold=(0.555, 0.556, 0.557), depth=0.4)
    given: dict[str, Any] = {"prompt": ["a", "b"], "num_images_per_prompt": 2}
    outs = [called(method, scheduler, width, **given) for width in (1, 3)]
    assert outs[0].report.chosen == outs[1].report.chosen
    torch.testing.assert_close(outs[1].images, outs[0].images, rtol=1e-3, atol=1e-3)


def test_prompts_together_equal_prompts_apart_and_cost_as_much() -> None:
    method = DepthFirst(3, threshold=(0.555, 0.556, 0.557), depth=0.4)
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    both = called(method, "euler_a", prompt=["a", "b"], generator=pair())
    rows = 0
    for number, text in enumerate("ab"):
        alone = called(method, "euler_a", prompt=text, generator=pair()[number])
        assert alone.rewards[0] == pytest.approx(both.rewards[number], abs=1e-5)
        assert alone.report.chosen[0][1] == both.report.chosen[number][1]
        rows += alone.report.ledger.denoiser_rows
    assert both.report.ledger.denoiser_rows == rows  # who is done asks for nothing


def test_on_flow_models() -> None:
    pipe, method = shared("sd3"), DepthFirst(2, depth=0.5)
    out = guided(pipe, redness, method=method)(**arguments("sd3"))
    assert out.report.ledger.denoiser_rows == method.cost(out.report.steps)
    plain = guided(pipe, redness, method=DepthFirst(2, threshold=-INF))(**arguments("sd3"))
    assert torch.equal(plain.images, pipe(**arguments("sd3"))[0])


def test_solvers_that_ask_twice_go_back_to_whole_steps() -> None:
    report = called(DepthFirst(3, depth=0.25), "heun").report
    assert set(went_back_to(report)) and all(step % 2 == 0 for step in went_back_to(report))
    assert report.ledger.denoiser_rows <= DepthFirst(3, depth=0.25).cost(report.steps)


def test_solvers_that_cannot_begin_in_the_middle() -> None:
    with pytest.raises(UnsupportedSchedulerError, match="cannot begin at step"):
        called(DepthFirst(2, depth=0.25), "pndm")


def test_other_methods_around_it() -> None:
    out = called(Gate(DepthFirst(2), 9.0, 2))
    assert out.accepted == [False]
    assert out.report.ledger.denoiser_rows <= Gate(DepthFirst(2), 9.0, 2).cost(STEPS)
    assert called(Budget(1.5, DepthFirst(4))).report.ledger.denoiser_rows <= 1.5 * STEPS


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps(steps: int) -> None:
    method = DepthFirst(4, threshold=INF, depth=1.0)
    report = called(method, num_inference_steps=steps).report
    assert report.ledger.denoiser_rows == method.cost(steps) == 4 * steps
    assert report.ledger.reward_calls <= method.work(steps).scores


def test_rewards_that_only_rank_are_refused() -> None:
    ranks = RankEnsemble([(FunctionReward(redness), 1.0), (given_rewards(), 1.0)])
    with pytest.raises(ValueError, match="DepthFirst cannot be held against"):
        called(DepthFirst(2), reward=ranks)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"compute": 0.5}, r"compute=0\.5: a plain call costs 1"),
        ({"threshold": (0.1, 0.2)}, r"threshold=\(0\.1, 0\.2\) with at=.*one for the finished"),
        ({"threshold": math.nan}, "threshold=nan"),
        ({"threshold": [0.1, None, 0.2]}, "threshold="),
        ({"at": (0.6, 0.5)}, "at="),
        ({"at": 0.5}, "at="),
        ({"depth": 0}, "depth=0"),
        ({"depth": 1.5}, r"depth=1\.5: a share of the steps"),
        ({"at": (0.3,), "threshold": calibration([0.5] * 8)}, "calibration, which has steps"),
    ],
)
def test_bad_input(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DepthFirst(**{"compute": 2, **options})
