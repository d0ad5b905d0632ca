"""`Gate(calibration=...)` on tiny pipelines: what is dropped, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import arguments, redness, seeded, shared

from steer import Gate, Threshold
from steer.core.errors import NotAcceptedError, ThresholdError
from steer.methods import SMC, BestOfN
from steer.pipeline.guided import guided
from steer.pipeline.previews import Previews
from steer.rewards import Calibration


STEPS = 4


def run(method: Any, *, width: int | None = None, scheduler: str | None = None, **more: Any) -> Any:
    return guided(shared("sd", scheduler), redness, method=method, lane_width=width)(
        **arguments("sd", **more)
    )


def watched(n: int, scheduler: str | None = None, **more: Any) -> tuple[Any, Any]:
    """Preview rewards after half of the steps, and final ones, `(prompts, n)` each."""
    trace = run(Previews((0.5,), n), scheduler=scheduler, **more).report.trace
    rows = trace.of("score")
    tables = []
    for preview in (True, False):
        found: dict[int, list[float]] = {}
        for row in rows:
            if row["preview"] is preview:
                found.setdefault(row["prompt"], []).extend(row["reward"])
        tables.append([found[prompt] for prompt in sorted(found)])
    return np.array(tables[0]), np.array(tables[1])


def cut_at(preview: float, tau: float, scheduler: str | None = None, **more: Any) -> Calibration:
    """A calibration by hand: previews after half of the steps must reach `preview`."""
    grid = run(Previews((0.5,)), scheduler=scheduler, **more).report.trace.of("grid")[0]
    threshold = Threshold(tau, reward="redness")
    count = more.get("num_inference_steps", STEPS)
    steps, noise = tuple(grid["steps"]), tuple(grid["noise"])
    return Calibration(
        threshold=threshold,
        alpha=0.1,
        steps=steps,
        cuts=(preview - tau,),
        count=count,
        noise=noise,
        accepted=9,
        pilots=20,
    )


def step_gate(n: int, calibration: Any, max_rounds: int = 1) -> Gate:
    return Gate(BestOfN(n), calibration=calibration, max_rounds=max_rounds)


def between(values: Any, rank: int) -> float:
    """A level between the values of a rank and the next."""
    ordered = np.sort(np.ravel(values))[::-1]
    return float((ordered[rank - 1] + ordered[rank]) / 2)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++2m", "euler_a"])
def test_it_drops_the_previews_below_the_cut(scheduler: str) -> None:
    previews, finals = watched(6, scheduler)
    calibration = cut_at(between(previews, 2), -1.0, scheduler)
    out = run(step_gate(6, calibration), scheduler=scheduler)
    alive = np.flatnonzero(previews[0] >= calibration.cuts[0] - 1.0)
    assert len(alive) == 2
    select = out.report.trace.of("select")[0]
    assert select["kept"] == alive.tolist()
    assert sorted(select["kept"] + select["dropped"]) == list(range(6))
    best = alive[finals[0][alive].argmax()]
    assert out.report.chosen == [(0, best)]
    assert out.rewards[0] == pytest.approx(finals[0][best], abs=1e-6)
    assert out.accepted == [True]
    ledger = out.report.ledger
    assert ledger.denoiser_rows == 6 * 2 + 2 * 2
    assert (ledger.reward_calls, ledger.decodes) == (6 + 2, 6 + 2)


@pytest.mark.parametrize("images", [1, 2])
def test_where_nothing_is_dropped_it_is_best_of_n(images: int) -> None:
    lenient = cut_at(-1e9, -1.0)
    more = {"num_images_per_prompt": images}
    plain = run(step_gate(1, lenient), **more)
    assert torch.equal(plain.images, shared("sd")(**arguments("sd", **more)).images)
    assert plain.report.ledger.denoiser_rows == images * STEPS
    four = run(step_gate(4, lenient), width=1, **more)
    assert torch.equal(four.images, run(BestOfN(4), width=1, **more).images)
    assert four.accepted == [True] * images


def test_lanes_do_not_matter() -> None:
    previews, _ = watched(6)
    method = step_gate(6, cut_at(between(previews, 3), -1.0))
    narrow = run(method, width=1)
    for width in (None, 2, 3, 6):
        wide = run(method, width=width)
        assert wide.report.lane_width == (width or 6)
        assert wide.report.ledger.denoiser_rows == narrow.report.ledger.denoiser_rows
        assert wide.report.chosen == narrow.report.chosen
        # Latents of about ten, each step a rounding of 1e-6 from other batch sizes' products.
        torch.testing.assert_close(wide.images, narrow.images, rtol=1e-4, atol=1e-4)


def test_the_last_one_goes_on_and_says_so() -> None:
    previews, finals = watched(4)
    strict = cut_at(2.0, 2.0)
    out = run(step_gate(4, strict))
    best = int(previews[0].argmax())
    assert out.report.chosen == [(0, best)]
    assert out.accepted == [False]
    assert out.rewards[0] == pytest.approx(finals[0][best], abs=1e-6)
    assert out.report.ledger.denoiser_rows == 4 * 2 + 1 * 2
    two = run(step_gate(4, strict), num_images_per_prompt=2)
    assert (len(two.images), two.accepted) == (2, [False, False])
    assert two.report.ledger.denoiser_rows == 8 * 2 + 2 * 2
    wrong = cut_at(2.0, float(finals[0][best]) - 1e-6)  # it clears the threshold after all
    assert run(step_gate(4, wrong)).accepted == [True]


def test_rounds_end_where_nothing_is_left() -> None:
    """One particle a round: each is left at the step where it is hopeless."""
    previews, finals = watched(6)
    first = int(previews[0].argmax())
    assert first > 0
    calibration = cut_at(between(previews, 1), float(finals[0][first]) - 1e-6)
    out = run(step_gate(1, calibration, max_rounds=6))
    assert out.report.chosen == [(0, first)]
    assert out.accepted == [True]
    assert out.report.ledger.denoiser_rows == first * 2 + STEPS
    starts = [row["particle"] for row in out.report.trace.of("start")]
    assert starts == [[k] for k in range(first + 1)]
    verdicts = [row["accepted"] for row in out.report.trace.of("round")]
    assert verdicts == [False] * first + [True]
    short = run(step_gate(1, calibration, max_rounds=first))  # never reaches it
    assert short.accepted == [False]
    assert short.report.chosen == [(0, first - 1)]
    assert short.report.ledger.denoiser_rows == (first - 1) * 2 + STEPS


def test_prompts_together_are_prompts_apart() -> None:
    prompts = ["a red circle", "two", "z"]
    previews, _ = watched(4, prompt=prompts, generator=[seeded(i) for i in range(3)])
    method = step_gate(2, cut_at(between(previews, 5), between(previews, 2)), max_rounds=2)
    out = run(method, prompt=prompts, generator=[seeded(i) for i in range(3)])
    for i, prompt in enumerate(prompts):
        alone = run(method, prompt=prompt, generator=[seeded(i)])
        assert alone.report.chosen[0][1] == out.report.chosen[i][1]
        assert alone.rewards[0] == pytest.approx(out.rewards[i], abs=1e-5)
        assert alone.accepted[0] == out.accepted[i]


def test_inside_a_gate() -> None:
    """Rounds of rounds draw particles that none before them had."""
    calibration = cut_at(2.0, 2.0)
    out = run(Gate(step_gate(2, calibration, max_rounds=2), Threshold(2.0), max_rounds=2))
    starts = [row["particle"] for row in out.report.trace.of("start")]
    assert starts == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert out.accepted == [False]
    _, finals = watched(8)
    nested = Gate(Gate(BestOfN(2), 2.0, max_rounds=2), 2.0, max_rounds=2)
    best = run(nested)
    assert best.rewards[0] == pytest.approx(finals.max(), abs=1e-6)
    assert nested.draws == 8


def test_a_calibration_from_a_file(tmp_path: Path) -> None:
    calibration = cut_at(-1.0, -1.0)
    calibration.save(tmp_path / "c.json")
    path: Any = str(tmp_path / "c.json")
    assert step_gate(2, path) == step_gate(2, calibration)
    with pytest.raises(ThresholdError, match=r"calibration='gone.json'"):
        step_gate(2, Path("gone.json"))


def test_bad_arguments() -> None:
    calibration: Any = cut_at(0.0, 0.0)
    with pytest.raises(ValueError, match=r"max_rounds=1\.5"):
        Gate(BestOfN(2), calibration=calibration, max_rounds=1.5)  # pyright: ignore
    with pytest.raises(ValueError, match="calibration=3: must be a Calibration"):
        Gate(BestOfN(2), calibration=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"threshold=0\.6 with a calibration, which has its own"):
        Gate(BestOfN(2), 0.6, calibration=calibration)
    with pytest.raises(ValueError, match=r"method=SMC.*for BestOfN alone; write Gate\(BestOfN"):
        Gate(SMC(2), calibration=calibration)


def test_a_prompt_that_is_never_served_may_raise() -> None:
    strict = Gate(BestOfN(2), calibration=cut_at(2.0, 2.0), max_rounds=2, on_reject="raise")
    with pytest.raises(NotAcceptedError, match="the best reward of 2 rounds"):
        run(strict)


def test_runs_that_are_not_covered_are_refused_at_the_first_step() -> None:
    calibration = cut_at(0.0, 0.0)
    method = step_gate(2, calibration)
    with pytest.raises(ThresholdError, match=r"4 denoiser calls.*5"):
        run(method, num_inference_steps=5)
    with pytest.raises(ThresholdError, match="noise share"):
        spaced = shared("sd")
        spaced.scheduler.register_to_config(timestep_spacing="trailing")
        guided(spaced, redness, method=method)(**arguments("sd"))
    other = replace(calibration, threshold=Threshold(0.0, reward="hpsv2.1"))
    calls = []
    with pytest.raises(ThresholdError, match=r"'hpsv2.1'.*'redness'"):
        pipe = shared("sd")
        hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
        try:
            guided(pipe, redness, method=step_gate(2, other))(**arguments("sd"))
        finally:
            hook.remove()
    assert len(calls) <= 1
