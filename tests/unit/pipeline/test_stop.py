"""`on_step`: a call followed from outside, and stopped with the best so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import arguments, build, redness, seeded, shared
from toy import Mixture, Toy, on_points, points
from unit.pipeline.test_recall import Cascade

from steer.methods import SMC, BestOfN, Gate, NoiseOptimization, Prune, Tree
from steer.pipeline.guided import guided
from steer.pipeline.progress import Progress
from steer.rewards.function import FunctionReward


def stop_when(there: Callable[[Progress], bool]) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        if there(progress):
            progress.stop()

    return on_step


def after(calls: int) -> Callable[[Progress], None]:
    return stop_when(lambda progress: progress.ledger.denoiser_calls >= calls)


def test_a_call_that_is_only_followed_is_the_same_call() -> None:
    seen: list[tuple[float, float | None]] = []
    call = guided(shared("sd"), redness, method=BestOfN(4), lane_width=2)
    free = call(**arguments("sd", output_type="pt"))
    out = call(
        **arguments("sd", output_type="pt"),
        on_step=lambda progress: seen.append((progress.left, progress.reward)),
    )
    assert torch.equal(out.images, free.images) and out.rewards == free.rewards
    assert not out.report.stopped and out.accepted == [True]
    left = [share for share, _ in seen]
    assert left == sorted(left, reverse=True) and left[-1] == 0
    assert seen[0][1] is None and seen[-1][1] == max(free.rewards)


def test_stopped_between_lanes_it_is_the_best_of_those_that_are_finished() -> None:
    """Bit for bit what the smaller search returns, for the smaller search's rows and one more."""
    call = guided(shared("sd"), redness, lane_width=1)
    out = call(**arguments("sd", output_type="pt"), method=BestOfN(8), on_step=after(9))
    small = call(**arguments("sd", output_type="pt"), method=BestOfN(2))
    assert torch.equal(out.images, small.images) and out.rewards == small.rewards
    assert out.report.chosen == small.report.chosen
    assert out.report.stopped and not out.report.interrupted
    assert out.report.ledger.denoiser_rows == small.report.ledger.denoiser_rows + 1
    assert out.report.kl == [None]


def test_stopped_after_a_cut_it_is_the_best_preview() -> None:
    """The reward is that of the returned image, which is the preview's own."""
    call = guided(shared("sd"), redness, method=Prune(8, (4,), (0.5,)), lane_width=4)
    out = call(
        **arguments("sd", output_type="pt", num_inference_steps=8),
        on_step=stop_when(lambda progress: bool(progress.trace.of("score"))),
    )
    (seen,) = out.report.trace.of("score")[:1]
    best = max(seen["reward"])
    assert out.report.chosen == [(0, seen["particle"][seen["reward"].index(best)])]
    assert out.rewards == pytest.approx([best], abs=1e-5)
    assert redness(out.images, [""]).tolist() == pytest.approx(out.rewards, abs=1e-5)
    assert out.accepted == [False]
    assert "Stopped after" in str(out.report) and "unfinished" in str(out.report)


def test_stopped_at_once_it_is_what_the_denoiser_expects_of_the_plain_image() -> None:
    """E[x0 | noise] of a mixture, which is known."""
    mixture = Mixture([[-2.0], [1.0]], [0.5, 0.4], [0.3, 0.7])
    pipe = Toy(mixture, "ddim")
    out = guided(pipe, on_points(lambda x: x[:, 0]), method=BestOfN(4))(
        "", output_type="pt", generator=seeded(3), on_step=lambda progress: progress.stop()
    )
    noise = torch.randn(1, 1, 1, 1, generator=seeded(3)).flatten(1)
    pipe.scheduler.set_timesteps(20)
    alpha, sigma = pipe.denoiser.coefficients(pipe.scheduler.timesteps[:1], pipe.scheduler)
    expected = mixture.posterior_mean(noise.double(), alpha, sigma)
    assert points(out.images).double() == pytest.approx(expected, abs=1e-4)
    assert out.report.chosen == [(0, 0)]
    assert out.report.ledger.denoiser_calls == 1


@pytest.mark.sample
@pytest.mark.parametrize("calls", [1, 3, 6, 11])
@pytest.mark.parametrize(
    "method",
    [BestOfN(4), Prune(6, (3,), (0.5,)), SMC(4), Tree(8), NoiseOptimization(3)],
    ids=lambda method: type(method).__name__,
)
def test_every_prompt_gets_its_images_whenever_it_is_stopped(
    method: Any, calls: int, tmp_path: Path
) -> None:
    prompts = ["a red circle", "a blue square"]
    reward = FunctionReward(redness, differentiable=True, needs_prompt=False)
    call = guided(shared("sd", "euler_a"), reward, method=method, keep_images=True, lane_width=1)
    given = arguments("sd", prompt=prompts, num_inference_steps=6, output_type="pt")
    out = call(**given, num_images_per_prompt=2, on_step=after(calls))
    assert len(out.images) == len(out.rewards) == 4
    assert [prompt for prompt, _ in out.report.chosen] == [0, 0, 1, 1]
    assert len(set(out.report.chosen)) == 4
    assert redness(out.images, [""] * 4).tolist() == pytest.approx(out.rewards, abs=1e-5)
    if out.report.stopped:
        assert out.report.ledger.denoiser_calls >= calls
        assert "Stopped after" in out.report.save(tmp_path / "page.html", out.images).read_text()


def test_a_gate_that_is_stopped_has_accepted_nothing() -> None:
    gate = Gate(BestOfN(1), threshold=9.0, max_rounds=4)
    out = guided(shared("sd"), redness, method=gate)(**arguments("sd"), on_step=after(6))
    assert out.report.stopped and out.accepted == [False]


def test_the_pipeline_called_again_is_stopped_after_a_call() -> None:
    pipe = Cascade(shared("sd").scheduler)
    call = guided(pipe, redness, method=BestOfN(8))
    with pytest.warns(UserWarning, match="every particle is a call"):
        out = call("a", generator=seeded(0), on_step=after(4))
    pipe.calls = 0
    again = call("a", generator=seeded(0), on_step=after(3 * 50))
    assert pipe.calls == 3 and again.report.stopped
    best = call("a", generator=seeded(0), method=BestOfN(3))
    assert torch.equal(again.images, best.images) and again.rewards == best.rewards
    assert out.report.stopped and out.report.chosen == [(0, 0)]


def test_what_it_raises_goes_through_and_leaves_the_pipeline_as_it_was() -> None:
    class OwnError(Exception):
        pass

    def on_step(progress: Progress) -> None:
        raise OwnError

    pipe = build("sd")
    before = dict(vars(pipe))
    with pytest.raises(OwnError):
        guided(pipe, redness, method=BestOfN(2))(**arguments("sd"), on_step=on_step)
    assert {name: vars(pipe)[name] for name in before} == before
    assert not {"scheduler", "prepare_latents", "progress_bar"} & (vars(pipe).keys() - before)
