"""Pilot runs, calibrations and the method that watches: plain calls, scored on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import arguments, redness, seeded, shared

import steer
from steer import Threshold
from steer.core.errors import ThresholdError
from steer.methods import BestOfN
from steer.pipeline.guided import guided
from steer.pipeline.previews import Previews
from steer.rewards import Calibration


STEPS = 4


def run(method: Any, **more: Any) -> Any:
    return guided(shared("sd"), redness, method=method)(**arguments("sd", **more))


def between(values: Any, rank: int) -> float:
    """A level between the values of a rank and the next."""
    ordered = np.sort(np.ravel(values))[::-1]
    return float((ordered[rank - 1] + ordered[rank]) / 2)


def test_previews_watch_and_change_nothing() -> None:
    out = run(Previews((0.25, 0.5)))
    assert torch.equal(out.images, shared("sd")(**arguments("sd")).images)
    assert out.report.ledger.denoiser_rows == STEPS
    assert [row["step"] for row in out.report.trace.of("score")] == [0, 1, None]
    assert out.report.trace.of("grid")[0]["steps"] == [0, 1]
    many = run(Previews((0.5,), 4))
    assert torch.allclose(many.images, run(BestOfN(4)).images, atol=1e-5)


@pytest.mark.parametrize("at", [(0.5, 0.25), (0.0,), (1.0,), (0.5, 0.5), "half"])
def test_previews_refuses(at: Any) -> None:
    with pytest.raises(ValueError, match=r"at=.*rising fractions"):
        Previews(at)


def pilot_call(**more: Any) -> dict[str, Any]:
    taken = arguments("sd", **more)
    return {k: taken[k] for k in taken if k not in ("prompt", "generator")}


PROMPTS = [f"{a} {b}" for a in "abc" for b in "xyz"]


def test_pilots_are_plain_calls() -> None:
    given = guided(shared("sd"), redness, method=BestOfN(7))
    together = steer.pipeline.pilots(
        given, PROMPTS, at=(0.25, 0.5), seed=5, batch=4, **pilot_call()
    )
    assert (together.steps, together.count, together.reward) == ((0, 1), STEPS, "redness")
    assert together.model == "StableDiffusionPipeline"
    assert together.previews.shape == (9, 2)
    for i in (0, 4, 8):
        alone = run(BestOfN(1), prompt=PROMPTS[i], generator=seeded(5 + i))
        assert together.finals[i] == pytest.approx(alone.rewards[0], abs=1e-6)
    assert given.method == BestOfN(7)
    plain = steer.pipeline.pilots(given, PROMPTS[:2], **pilot_call())
    assert plain.previews.shape == (2, 0)
    assert Threshold.fit(plain.scores()).reward == "redness"


def test_calibrate_and_run(tmp_path: Path) -> None:
    given = guided(shared("sd"), redness)
    runs = steer.pipeline.pilots(given, PROMPTS * 2, at=(0.5,), batch=6, **pilot_call())
    tau = between(runs.finals, 10)
    calibration = steer.calibrate_gate(
        given, PROMPTS * 2, tau, at=(0.5,), alpha=0.2, batch=6, **pilot_call()
    )
    assert calibration == Calibration.fit(runs, tau, 0.2)
    assert calibration.accepted == 10
    schedule = run(Previews((0.5,))).report.trace.of("grid")[0]
    assert calibration.noise == pytest.approx(schedule["noise"])
    Threshold(tau, reward="redness").save(tmp_path / "tau.json")
    path = str(tmp_path / "tau.json")
    again = steer.calibrate_gate(given, PROMPTS * 2, path, at=(0.5,), alpha=0.2, **pilot_call())
    assert again.cuts == pytest.approx(calibration.cuts, abs=1e-5)
    assert len(run(steer.Gate(BestOfN(2), calibration=calibration)).accepted) == 1
    split = steer.calibrate_gate(
        given, PROMPTS * 2, quantile=0.5, at=(0.5,), alpha=0.4, batch=6, **pilot_call()
    )
    assert split.pilots == 9
    assert split.threshold.tau == np.median(runs.finals[1::2])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"prompts": "one text"}, "prompts='one text'"),
        ({"prompts": []}, r"prompts=\[\]"),
        ({"batch": 0}, "batch=0"),
        ({"generator": None}, "generator: set by the pilots"),
    ],
)
def test_bad_pilots(given: dict[str, Any], named: str) -> None:
    pipe = guided(shared("sd"), redness)
    prompts = given.pop("prompts", ["a"])
    with pytest.raises(ValueError, match=named):
        steer.pipeline.pilots(pipe, prompts, **given)


def test_bad_calibrations() -> None:
    pipe = guided(shared("sd"), redness)
    with pytest.raises(ValueError, match=r"threshold=None, quantile=None: give one"):
        steer.calibrate_gate(pipe, ["a"])
    with pytest.raises(ValueError, match=r"threshold=0.5, quantile=0.5: give one"):
        steer.calibrate_gate(pipe, ["a"], 0.5, quantile=0.5)
    with pytest.raises(ThresholdError, match=r"needs 9 accepted pilots, and at most 8 of 8"):
        steer.calibrate_gate(pipe, ["a"] * 8, 0.5)
    with pytest.raises(ThresholdError, match=r"at most 8 of 16"):
        steer.calibrate_gate(pipe, ["a"] * 16, quantile=0.5)
    with pytest.raises(ThresholdError, match=r"'hpsv2.1'.*'redness'"):
        steer.calibrate_gate(pipe, ["a"] * 9, Threshold(0.5, reward="hpsv2.1"))
    with pytest.raises(ValueError, match=r"at=\(\)"):
        steer.calibrate_gate(pipe, ["a"] * 9, 0.5, at=())


def test_noise_is_read_off_the_grid() -> None:
    steps = []

    class Spy(Previews):
        def __call__(self, ctx: Any, start: Any) -> Any:
            steps.extend(step.noise_share for step in ctx.steps)
            return (yield from super().__call__(ctx, start))

    out = run(Spy((0.25, 0.75)))
    assert out.report.trace.of("grid")[0]["noise"] == [steps[0], steps[2]]
