"""The kernel of one number per step: its move, where it draws no noise, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import diffusers
import pytest
import torch
from flow_law import flow_grid, flow_step

from steer.core.ddim import ddim
from steer.core.errors import UnsupportedSchedulerError
from steer.core.types import Move, Population, Step
from steer.driver.grid import Schedule
from steer.driver.solver_state import ignores_generator
from steer.search.context import Context
from steer.search.kernels.laws import LAWS
from steer.search.kernels.rho import Rho


NOWHERE = cast(Context, SimpleNamespace())
IDS = ((0, 0), (0, 1))


def moved(kernel: Rho, step: Step, x: torch.Tensor, output: torch.Tensor) -> Move:
    move = kernel(NOWHERE, step, Population(x, IDS), output)
    assert isinstance(move, Move)
    return move


def random_pair(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    x, v = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    return x.to(dtype), v.to(dtype)


@pytest.mark.parametrize("name", LAWS)
def test_the_move_of_every_law(name: str) -> None:
    """With D and the noise e known: mean alpha' D + sigma' rho e, std sigma' sqrt(1 - rho^2)."""
    step, (clean, noise) = flow_step(0.7, 0.4), random_pair(torch.float64)
    kept, fresh = Rho(name).shares(step)
    move = moved(Rho(name), step, 0.3 * clean + 0.7 * noise, noise - clean)
    torch.testing.assert_close(move.mean, 0.6 * clean + 0.4 * kept * noise, rtol=0, atol=1e-6)
    torch.testing.assert_close(move.x0, clean, rtol=0, atol=1e-6)
    assert move.std == pytest.approx(0.4 * fresh)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("count", [4, 28])
def test_without_noise_it_is_the_scheduler_bit_for_bit(shift: float, count: int) -> None:
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(count)
    x, v = random_pair()
    for step in Schedule.from_scheduler(scheduler):
        expected = scheduler.step(v, step.t, x).prev_sample
        assert torch.equal(moved(Rho("ode"), step, x, v).mean, expected)
        x, v = expected, v * 0.9


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_ddim_is_one_of_them_bit_for_bit(scheduler: str, eta: float) -> None:
    made = getattr(diffusers, scheduler)()
    made.set_timesteps(6)
    x, output = random_pair()
    for step in Schedule.from_scheduler(made):
        one = moved(Rho("ddim", eta), step, x, output)
        two = ddim(step, x, step.x0(x, output), eta)
        assert torch.equal(one.mean, two.mean) and one.std == two.std


@pytest.mark.parametrize(
    ("name", "scheduler", "options"),
    [
        ("euler-ancestral", "LTXEulerAncestralRFScheduler", {}),
        ("renoise", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
        ("renoise", "FlowMatchLCMScheduler", {}),
    ],
)
def test_noisy_schedulers_of_diffusers_are_among_them(
    name: str, scheduler: str, options: dict[str, Any]
) -> None:
    if not hasattr(diffusers, scheduler):
        pytest.skip("a newer diffusers has it")
    made = getattr(diffusers, scheduler)(**options)
    if ignores_generator(made):
        pytest.skip("a newer diffusers draws with the generator")
    made.set_timesteps(6)
    x, v = random_pair()
    for i, step in enumerate(Schedule.from_scheduler(made)):
        drawn = torch.Generator().manual_seed(i)
        expected = made.step(v, step.t, x, generator=drawn, return_dict=False)[0]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
        got = moved(Rho(name, fresh_start=True), step, x, v).sample(noise)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        x = expected


def test_the_first_and_the_last_step_draw_no_noise() -> None:
    """The first would forget the initial noise, in which seeds are searched."""
    grid = flow_grid(5)
    for name in LAWS:
        silent = [Rho(name).is_silent(step) for step in grid]
        assert silent == ([False] * 5 if name == "ddim" else [True] + [name == "ode"] * 3 + [True])
    fresh = Rho("flow-sde", fresh_start=True)
    assert fresh.shares(grid[0]) == (0.0, 1.0) and not fresh.is_silent(grid[0])
    assert Rho("ddim").shares(grid[0]) == (0.0, 1.0)


def test_noise_inside_a_window_only() -> None:
    kernel = Rho("rbf", noise_window=(0.3, 0.7))
    noisy = [step.sigma for step in flow_grid(10) if not kernel.is_silent(step)]
    assert noisy == pytest.approx([0.7, 0.6, 0.5, 0.4, 0.3])
    assert Rho(noise_window=cast(Any, [0.3, 0.7])) == Rho(noise_window=(0.3, 0.7))


def test_a_step_that_does_not_lower_the_noise_draws_none() -> None:
    for there in (0.5, 0.8):
        assert Rho("cps").shares(flow_step(0.5, there)) == (1.0, 0.0)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_from_pure_noise_to_clean_data(name: str, dtype: torch.dtype) -> None:
    x, v = random_pair(dtype)
    for fresh_start in (False, True):
        for step in flow_grid(3):
            move = moved(Rho(name, fresh_start=fresh_start), step, x, v)
            assert move.mean.dtype == dtype and move.mean.isfinite().all()
            assert 0 <= move.std <= 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preset": "flow-sd"}, r"preset='flow-sd': unknown; did you mean 'flow-sde'"),
        ({"preset": "ode", "level": 0.5}, r"level=0\.5: 'ode' has no strength"),
        ({"preset": "cps", "level": 1.5}, r"level=1\.5: that of 'cps' is eta.*from 0 to 1"),
        ({"preset": "constant", "level": 1.01}, r"level=1\.01: .* rho itself, from 0 to 1"),
        ({"level": -0.1}, r"level=-0\.1: must be a finite number at least 0"),
        ({"level": float("nan")}, "level=nan"),
        ({"inner": 0}, r"inner=0: must be a whole number, at least 1"),
        ({"inner": 2.5}, r"inner=2\.5"),
        ({"preset": "ode", "inner": 4}, r"inner=4 with preset='ode'"),
        ({"noise_window": (0.7, 0.3)}, r"noise_window=\(0\.7, 0\.3\): must be two noise levels"),
        ({"noise_window": (0.2, 1.3)}, "noise_window"),
        ({"noise_window": 0.5}, r"noise_window=0\.5"),
        ({"noise_window": (0.1, "b")}, "noise_window"),
    ],
)
def test_bad_input(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Rho(**options)


def test_what_a_grid_does_not_have() -> None:
    vp = diffusers.DDIMScheduler()
    vp.set_timesteps(10)
    with pytest.raises(UnsupportedSchedulerError, match=r"only flow models.*inner=1"):
        Rho(inner=4).check(Schedule.from_scheduler(vp), "SMC")
    with pytest.raises(ValueError, match=r"SMC: noise_window=\(0\.01, 0\.05\) holds at no step"):
        Rho(noise_window=(0.01, 0.05)).check(flow_grid(10), "SMC")
    Rho(inner=4).check(flow_grid(10), "SMC")
