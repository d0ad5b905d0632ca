"""The inner flow against the exact transition on Gaussian data, and its first call for free."""

from __future__ import annotations

import math
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flow_law import flow_grid, flow_step

from steer.core.types import Move, Population, Query, Step
from steer.search.kernels.draws import finish_move
from steer.search.kernels.glass import Stage, inner_flow
from steer.search.kernels.laws import Shares
from steer.search.kernels.rho import Rho
from steer.search.starts import Starts


STD = 0.5  # of the data


def shares_of(rho: float) -> Shares:
    return Shares(rho, math.sqrt(1 - rho**2))


def answer(step: Step, x: torch.Tensor) -> torch.Tensor:
    """The velocity of the exact denoiser of N(0, STD^2)."""
    gain = step.alpha * STD**2 / ((step.alpha * STD) ** 2 + step.sigma**2)
    return (x - step.alpha * gain * x) / step.sigma - gain * x


def fake(rows: int) -> tuple[Any, list[Step]]:
    """A context with the exact denoiser, and the steps that it is asked at."""
    asked: list[Step] = []

    def denoise(here: Population, step: Step) -> Generator[Query, Any, torch.Tensor]:
        asked.append(step)
        return answer(step, here.x)
        yield

    steps = flow_grid(10)
    return SimpleNamespace(starts=Starts(), steps=steps, denoise=denoise), asked


def finish(moving: Any) -> Move:
    """Run a move to its end; nothing here waits for a pipeline."""
    try:
        next(finish_move(moving))
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a query")


def spread(s: float, to: float, rho: float, calls: int) -> float:
    """The standard deviation of x' given x, from the flow's own linear recursion."""
    step, of_noise = flow_step(s, to), 1.0
    for number in range(calls):
        stage = Stage.at(step, shares_of(rho), number / calls)
        alpha = 1 - stage.sigma
        gain = alpha * STD**2 / ((alpha * STD) ** 2 + stage.sigma**2)
        clean = gain * stage.of_y * of_noise
        of_noise += (stage.pull * of_noise + stage.push * clean) / calls
    return of_noise


def exact(s: float, to: float, rho: float) -> float:
    """That of two noisy views of x0 whose noises have correlation rho."""
    here, there = ((1 - s) * STD) ** 2 + s**2, ((1 - to) * STD) ** 2 + to**2
    both = (1 - s) * (1 - to) * STD**2 + rho * s * to
    return math.sqrt(there - both**2 / here)


@pytest.mark.parametrize(
    ("step", "means", "limit"),
    [
        ((0.9, 0.7, 0.4), (0.6416, 0.6490, 0.6533, 0.6559), 0.6555),
        ((0.6, 0.3, 0.8), (0.1800, 0.2253, 0.2732, 0.3081), 0.3131),
        ((0.6, 0.3, 1.0), (0.0, 0.0533, 0.1459, 0.2245), 0.2372),
    ],
)
def test_the_spread_becomes_exact(
    step: tuple[float, float, float], means: tuple[float, ...], limit: float
) -> None:
    """Figures of an independent simulation of 200,000 draws, standard error 0.2%."""
    assert exact(*step) == pytest.approx(limit, abs=1e-4)
    for calls, mean in zip((1, 2, 5, 40), means, strict=True):
        assert spread(*step, calls) == pytest.approx(mean, rel=0.005, abs=1e-9)
    assert spread(*step, 2000) == pytest.approx(limit, rel=2e-3)
    if step[2] < 1:
        assert spread(*step, 40) == pytest.approx(limit, rel=0.02)


def test_draws_follow_the_exact_conditional() -> None:
    ctx, asked = fake(4000)
    step, rows = flow_step(0.6, 0.3), 4000
    x = torch.full((rows, 1, 1, 1), 0.8)
    here = Population(x, tuple((0, k) for k in range(rows)))
    move = finish(inner_flow(ctx, step, shares_of(0.8), here, answer(step, x), 20))
    variance = (0.4 * STD) ** 2 + 0.36
    mean = (0.4 * 0.7 * STD**2 + 0.8 * 0.6 * 0.3) / variance * 0.8
    assert float(move.mean.mean()) == pytest.approx(mean, abs=0.02)
    assert float(move.mean.std()) == pytest.approx(exact(0.6, 0.3, 0.8), rel=0.05)
    assert move.std == 0 and len(asked) == 19  # the first call was made
    levels = [step.sigma for step in asked]
    assert levels == sorted(levels, reverse=True) and 0 < levels[-1] < levels[0] <= 0.6
    assert [float(step.t) for step in asked] == pytest.approx([1000 * s for s in levels], rel=1e-4)


def test_one_call_is_the_step_of_one_number() -> None:
    ctx, asked = fake(2)
    step, x = flow_step(0.7, 0.4), torch.randn(2, 4, 3, 3)
    here, output = Population(x, ((0, 0), (0, 3))), torch.randn(2, 4, 3, 3)
    one = finish(inner_flow(ctx, step, shares_of(0.6), here, output, 1))
    move = finish(Rho("constant", 0.6)(ctx, step, here, output))
    noise = ctx.starts.noise(here.ids, (step.index,), x)
    torch.testing.assert_close(one.mean, move.sample(noise), rtol=1e-5, atol=1e-5)
    assert not asked


def test_a_row_does_not_depend_on_its_batch() -> None:
    ctx, _ = fake(3)
    step, x = flow_step(0.7, 0.4), torch.randn(3, 4, 3, 3)
    ids, kernel = ((0, 0), (0, 7), (0, 2)), Rho(inner=3)
    whole = finish(kernel(ctx, step, Population(x, ids), answer(step, x))).mean
    alone = finish(kernel(ctx, step, Population(x[1:2], ids[1:2]), answer(step, x[1:2]))).mean
    assert torch.equal(whole[1:2], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_pure_noise_it_is_finite(dtype: torch.dtype) -> None:
    ctx, asked = fake(2)
    x = torch.randn(2, 4, 3, 3).to(dtype)
    kernel, here = Rho("flow-sde", inner=4, fresh_start=True), Population(x, ((0, 0), (0, 1)))
    move = finish(kernel(ctx, ctx.steps[0], here, x))
    assert move.mean.isfinite().all() and move.mean.dtype == dtype and len(asked) == 3
