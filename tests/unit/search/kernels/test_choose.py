"""Which schedulers draw noise, and which kernel moves the particles of a call."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from families import BETAS, SCHEDULERS, arguments, redness, seeded, shared

from steer.core.when import every
from steer.driver.grid import Schedule
from steer.driver.solver import Solver
from steer.driver.solver_state import ignores_generator
from steer.methods import SMC, Beam, Blockwise, Tree
from steer.pipeline.guided import guided


NOISY: dict[str, Any] = {
    "ancestral": SCHEDULERS["euler_a"],
    "sde-dpm++": SCHEDULERS["sde-dpm++"],
    "ddpm": lambda: diffusers.DDPMScheduler(**BETAS),
    "lcm": lambda: diffusers.LCMScheduler(**BETAS),
    "kdpm2-ancestral": lambda: diffusers.KDPM2AncestralDiscreteScheduler(**BETAS),
    "sa": lambda: diffusers.SASolverScheduler(**BETAS),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
}
if ignores_generator(NOISY["flow"]()):
    del NOISY["flow"]  # refused, see the solver's tests


def solver_of(scheduler: Any, steps: int = 8, **kwargs: Any) -> tuple[Solver, Schedule]:
    scheduler.set_timesteps(steps)
    schedule = Schedule.from_scheduler(scheduler)
    return Solver(scheduler, plain_rows=2, step_kwargs=kwargs), schedule


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_found(name: str) -> None:
    solver, schedule = solver_of(NOISY[name]())
    assert solver.draws_noise(schedule)


@pytest.mark.parametrize(
    "name", ["ddim", "euler", "dpm++2m", "unipc", "heun", "kdpm2", "pndm", "flow"]
)
def test_no_noise_is_found(name: str) -> None:
    solver, schedule = solver_of(SCHEDULERS[name]())
    assert not solver.draws_noise(schedule)


def test_it_depends_on_how_the_pipeline_calls() -> None:
    solver, schedule = solver_of(SCHEDULERS["ddim"](), eta=0.7)
    assert solver.draws_noise(schedule)


def test_asking_changes_nothing() -> None:
    generator, untouched = seeded(3), seeded(3)
    solver, schedule = solver_of(SCHEDULERS["euler_a"](), generator=generator)
    fresh, _ = solver_of(SCHEDULERS["euler_a"](), generator=untouched)
    x, ids = torch.randn(2, 4, 3, 3, generator=seeded(0)), [(0, 0), (1, 0)]
    solver.step(schedule[0], x, x, ids)
    assert solver.draws_noise(schedule)
    fresh.step(schedule[0], x, x, ids)
    assert torch.equal(solver.step(schedule[1], x, x, ids), fresh.step(schedule[1], x, x, ids))


@pytest.mark.parametrize("method", [SMC(2, when=every(1)), Beam(1), Blockwise(2), Tree(2)])
def test_few_steps_of_a_deterministic_scheduler_warn(method: Any) -> None:
    """Fresh noise at every step is nothing that few-step models expect; saying so is consent."""
    pipe = shared("sd", "ddim")
    with pytest.warns(UserWarning, match=r"4 steps of DDIMScheduler.*NoiseSearch.*BestOfN"):
        guided(pipe, redness, method=method)(**arguments("sd"))
    meant = replace(method, kernel="ddim")
    silent = (("ddim", meant, 4), ("euler_a", method, 4), ("ddim", method, 9))
    for scheduler, asked, steps in silent:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            guided(shared("sd", scheduler), redness, method=asked)(
                **arguments("sd", num_inference_steps=steps)
            )
