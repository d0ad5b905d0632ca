"""The grid read off schedulers, against the formulas of their noise schedules."""

from __future__ import annotations

import copy
import itertools
import math
import time
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from steer.core.errors import UnsupportedSchedulerError
from steer.driver.grid import Schedule, prediction_of


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def cumulative() -> np.ndarray:
    """Stable Diffusion's signal power per training step, from its definition."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    return np.cumprod(1 - betas)


def grid(name: str, steps: int = 10, part: slice | None = None, **config: Any) -> Schedule:
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    return Schedule.from_scheduler(scheduler, None if part is None else scheduler.timesteps[part])


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler"]
)
def test_variance_preserving_by_table(name: str) -> None:
    power = cumulative()
    for step in grid(name, **SD):
        assert step.alpha == pytest.approx(power[int(step.t)] ** 0.5, rel=1e-4)
        assert step.alpha**2 + step.sigma**2 == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "SASolverScheduler",
    ],
)
def test_variance_preserving_by_sigma(name: str) -> None:
    power = cumulative()
    for step in grid(name, **SD):
        assert step.alpha == pytest.approx(power[int(step.t)] ** 0.5, rel=1e-4)
        assert step.alpha**2 + step.sigma**2 == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler"]
)
def test_variance_exploding(name: str) -> None:
    power = cumulative()
    noise = ((1 - power) / power) ** 0.5
    for step in grid(name, **SD):
        expected = np.interp(float(step.t), np.arange(1000), noise)
        assert step.alpha == 1
        assert step.sigma == pytest.approx(expected, rel=1e-4)


def test_karras_sigmas() -> None:
    """Karras et al. 2022, eq. 5, rho = 7, between the ends of the training range."""
    power = cumulative()
    low, high = (((1 - power[i]) / power[i]) ** 0.5 for i in (0, -1))
    ramp = np.linspace(0, 1, 10)
    expected = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"):
        got = [s.sigma / s.alpha for s in grid(name, **SD, use_karras_sigmas=True)]
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    got = [s.sigma for s in grid("EulerDiscreteScheduler", **SD, use_karras_sigmas=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMapEulerDiscreteScheduler", {"shift": 3.0}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}),
    ],
)
def test_flow(name: str, config: dict[str, Any]) -> None:
    if "use_flow_sigmas" in config:
        config["prediction_type"] = "flow_prediction"
    for step in grid(name, **config):
        assert step.prediction == "flow"
        assert step.alpha == pytest.approx(1 - step.sigma, abs=1e-7)
        # these solvers hand the model integer timesteps
        assert step.sigma == pytest.approx(float(step.t) / 1000, abs=1.1e-3)
    assert step.alpha_next == 1
    assert step.sigma_next == 0


def test_dynamic_shifting() -> None:
    """Flux: sigma = e^mu / (e^mu + 1/s - 1) over a linear ramp of s."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ramp = np.linspace(1, 1 / 8, 8)
    scheduler.set_timesteps(sigmas=ramp.tolist(), mu=0.9)
    expected = math.exp(0.9) / (math.exp(0.9) + 1 / ramp - 1)
    got = [s.sigma for s in Schedule.from_scheduler(scheduler)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


ENDS: list[tuple[str, dict[str, Any], float]] = [
    ("DDIMScheduler", {}, 0.0),
    ("DDIMScheduler", {"set_alpha_to_one": False}, 0.00085),
    ("PNDMScheduler", {"skip_prk_steps": True}, 0.00085),
    ("DDPMScheduler", {}, 0.0),
    ("LCMScheduler", {}, 0.0),
    ("TCDScheduler", {}, 0.00085),
    ("EulerDiscreteScheduler", {}, 0.0),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, 0.00085),
    ("DPMSolverMultistepScheduler", {}, 0.0),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, 0.00085),
    ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"}, 0.00085),
    ("HeunDiscreteScheduler", {}, 0.0),
]


@pytest.mark.parametrize(("name", "config", "beta"), ENDS)
def test_the_end_of_the_run(name: str, config: dict[str, Any], beta: float) -> None:
    """Clean data, or the first training step (noise power beta_0 = 0.00085) where so configured."""
    last = grid(name, **SD, **config)[-1]
    power = (last.sigma_next / math.hypot(last.alpha_next, last.sigma_next)) ** 2
    assert power == pytest.approx(beta, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
    ],
)
def test_steps_chain(name: str) -> None:
    schedule = grid(name, **SD)
    assert [s.index for s in schedule] == list(range(len(schedule)))
    assert {s.count for s in schedule} == {len(schedule)}
    for here, there in itertools.pairwise(schedule):
        assert (here.alpha_next, here.sigma_next) == (there.alpha, there.sigma)


@pytest.mark.parametrize(
    "name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]
)
def test_second_order_solvers_by_what_they_call_clean(name: str) -> None:
    """The scheduler's own `pred_original_sample` is the x0 of our step, at every call."""
    scheduler = getattr(diffusers, name)(**SD)
    scheduler.set_timesteps(6)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)) * 10
    for step in Schedule.from_scheduler(scheduler):
        output = torch.tanh(x) + 0.1
        result = scheduler.step(output, step.t, x)
        torch.testing.assert_close(step.x0(x, output), result.pred_original_sample)
        x = result.prev_sample


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler"])
def test_x0_is_the_schedulers(name: str, prediction: str) -> None:
    config = {"clip_sample": False} if name != "EulerDiscreteScheduler" else {}
    scheduler = getattr(diffusers, name)(**SD, **config, prediction_type=prediction)
    scheduler.set_timesteps(6)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for step in Schedule.from_scheduler(scheduler):
        output = torch.tanh(x) + 0.1
        if name == "LCMScheduler":  # it mixes x0 with x; undo that with its own scalings
            skip, out = scheduler.get_scalings_for_boundary_condition_discrete(step.t)
            clean = (scheduler.step(output, step.t, x).denoised - skip * x) / out
        else:
            clean = scheduler.step(output, step.t, x).pred_original_sample
        torch.testing.assert_close(step.x0(x, output), clean, rtol=1e-4, atol=1e-4)


def test_zero_terminal_snr() -> None:
    first = grid(
        "DDIMScheduler",
        20,
        **SD,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )[0]
    assert (first.alpha, first.sigma) == (0, 1)


@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("part", [slice(4, None), slice(0, 4), slice(None)])
def test_a_part_of_the_grid(name: str, part: slice) -> None:
    """Image-to-image runs the tail, SDXL's `denoising_end` the head."""
    whole, some = grid(name, **SD), grid(name, part=part, **SD)
    assert some.offset == (part.start or 0)
    for a, b in zip(some, whole[part], strict=True):
        assert (a.alpha, a.sigma, a.sigma_next) == (b.alpha, b.sigma, b.sigma_next)
        assert torch.equal(a.t, b.t)


def test_timesteps_of_another_grid_are_refused() -> None:
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(UnsupportedSchedulerError, match="not a contiguous part"):
        Schedule.from_scheduler(scheduler, torch.tensor([5, 3]))


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"]
)
@pytest.mark.parametrize("began", [True, False])
def test_the_scheduler_is_untouched(name: str, began: bool) -> None:
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(5)
    if began:
        getattr(scheduler, "set_begin_index", lambda _: None)(2)
    before = copy.deepcopy(vars(scheduler))
    Schedule.from_scheduler(scheduler)
    for key, value in vars(scheduler).items():
        same = torch.equal(value, before[key]) if isinstance(value, Tensor) else True
        assert same and repr(value) == repr(before[key])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: diffusers.EDMEulerScheduler(), "EDM"),
        (lambda: diffusers.IPNDMScheduler(), "prediction_type=None"),
        (lambda: diffusers.SCMScheduler(), "trigflow"),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
    ],
)
def test_unknown_predictions_are_named(make: Any, said: str) -> None:
    with pytest.raises(UnsupportedSchedulerError, match=said):
        prediction_of(make())


@pytest.mark.skipif(
    not hasattr(diffusers, "LTXEulerAncestralRFScheduler"), reason="a newer diffusers has it"
)
def test_an_ancestral_flow_scheduler_has_the_grid_of_a_flow_model() -> None:
    scheduler = diffusers.LTXEulerAncestralRFScheduler()
    scheduler.set_timesteps(4)
    steps = Schedule.from_scheduler(scheduler)
    assert [step.sigma for step in steps] == scheduler.sigmas[:4].tolist()
    assert all(step.alpha + step.sigma == 1 for step in steps)
    assert (steps[-1].alpha_next, steps[-1].sigma_next) == (1.0, 0.0)


def test_a_scheduler_without_noising_is_refused() -> None:
    class Mute(diffusers.FlowMatchEulerDiscreteScheduler):
        scale_noise = property()

    scheduler = Mute()
    scheduler.set_timesteps(4)
    with pytest.raises(UnsupportedSchedulerError, match="neither add_noise nor scale_noise"):
        Schedule.from_scheduler(scheduler)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_a_thousand_steps_are_quick(name: str) -> None:
    began = time.perf_counter()
    assert len(grid(name, 1000, **SD)) == 1000
    assert time.perf_counter() - began < 2
