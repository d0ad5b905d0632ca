"""`BestOfN(strides=...)`: against plain calls of fewer steps; its cost and names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted_work import agrees, counting, reddish
from families import arguments, redness, seeded, shared

from steer.core.errors import UnsupportedPipelineError
from steer.core.when import at
from steer.methods import BestOfN, Budget, Gate, Guide, NoiseOptimization, Then
from steer.methods.text import parse_method
from steer.pipeline.guided import guided
from steer.rewards import Calibration


SHORT = BestOfN(4, strides=3)


def test_it_is_euler_on_fewer_points() -> None:
    """Euler's method takes DDIM's moves, and can be asked for any timesteps by a plain call."""
    pipe = shared("sd", "euler")
    call, again = (
        arguments("sd", num_inference_steps=9, output_type="pt", generator=seeded(0))
        for _ in range(2)
    )
    pipe.scheduler.set_timesteps(9)
    times = pipe.scheduler.timesteps.tolist()
    wanted = pipe(**{**call, "num_inference_steps": None}, timesteps=times[::3]).images
    drawn = guided(pipe, redness, method=BestOfN(1, strides=3))(**again)
    assert torch.allclose(drawn.images, wanted, atol=1e-4)


@pytest.mark.parametrize("strides", [8, 50])
def test_with_a_stride_per_step_it_is_best_of_n(strides: int) -> None:
    outs = [
        guided(shared("sd"), redness, method=method)(
            **arguments("sd", num_inference_steps=8, prompt=["a", "b"], output_type="pt")
        )
        for method in (BestOfN(4), BestOfN(4, strides))
    ]
    assert torch.allclose(outs[0].images, outs[1].images, atol=1e-4)
    assert outs[0].report.ledger.denoiser_rows == outs[1].report.ledger.denoiser_rows


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_it_costs_what_it_says(family: str) -> None:
    pipe = shared(family)
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=SHORT)(**arguments(family, num_inference_steps=8))
    assert agrees(seen, out.report)
    assert out.report.ledger.denoiser_rows == SHORT.cost(8) == 4 * 3
    assert SHORT.cost(2) == 8 and SHORT.rows_at(8, [1, 2]) == 8 and SHORT.rows_at(8, range(8)) == 12


@pytest.mark.sample(1, 3, 5)
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "pndm", "heun", "dpm++2m", "unipc"])
def test_lanes_and_company_do_not_matter(scheduler: str) -> None:
    pipe = shared("sd", scheduler)
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    call = arguments("sd", num_inference_steps=8)
    outs = [
        guided(pipe, redness, method=SHORT, lane_width=width)(
            **call | {"prompt": ["a", "b"], "generator": pair()}
        )
        for width in (1, 3, 4)
    ]
    for out in outs[1:]:
        assert out.rewards == pytest.approx(outs[0].rewards, abs=1e-5)
    for number, text in enumerate("ab"):
        alone = guided(pipe, redness, method=SHORT)(
            **call | {"prompt": text, "generator": pair()[number]}
        )
        assert alone.rewards[0] == pytest.approx(outs[0].rewards[number], abs=1e-5)


def test_no_particle_has_the_plain_ones_name() -> None:
    out = guided(shared("sd"), redness, method=SHORT)(**arguments("sd", num_inference_steps=8))
    assert out.report.base_reward == [None]
    (names,) = (row["particle"] for row in out.report.trace.of("score"))
    assert min(names) >= 100_000 and out.report.chosen[0][1] in names


@pytest.mark.parametrize(
    "outer",
    [
        Guide(SHORT, 0.3, at(3)),
        Gate(SHORT, threshold=9.0, max_rounds=2),
        Then(SHORT, NoiseOptimization(2, through=2)),
        Budget(3, SHORT),
    ],
    ids=repr,
)
def test_it_composes(outer: Any) -> None:
    out = guided(shared("sd"), reddish, method=outer)(**arguments("sd", num_inference_steps=8))
    assert out.images.isfinite().all() and out.report.ledger.denoiser_rows <= outer.cost(8)


def test_what_it_is_written_like() -> None:
    assert repr(BestOfN(4)) == "BestOfN(n=4)"
    for method in (BestOfN(4), SHORT):
        assert parse_method(repr(method)) == method


@pytest.mark.parametrize("strides", [0, 2.5, True, "3"])
def test_what_is_no_number_of_strides(strides: Any) -> None:
    with pytest.raises(ValueError, match=r"strides=.*whole number"):
        BestOfN(4, strides)


def test_what_it_refuses() -> None:
    pipe = guided(shared("sdxl"), redness, method=SHORT)
    with pytest.raises(UnsupportedPipelineError, match=r"denoising_end.*leave strides out"):
        pipe(**arguments("sdxl", num_inference_steps=8, denoising_end=0.5))
    cuts = Calibration(
        threshold=0.5,
        alpha=0.1,
        steps=(1,),
        cuts=(0.0,),
        count=4,
        noise=(0.5,),
        accepted=9,
        pilots=9,
    )
    with pytest.raises(ValueError, match=r"strides=3.*every step, so for BestOfN alone"):
        Gate(SHORT, calibration=cuts)
