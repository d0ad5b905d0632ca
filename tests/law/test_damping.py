"""Reward damping against closed forms: Gaussian data and a quadratic reward."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import SCHEDULERS, Mixture, Toy, gaussian_chain, on_points, run

from steer.core.potentials import damping
from steer.core.resampling import normalise
from steer.core.types import Population, Step
from steer.core.when import every
from steer.methods import SMC, BestOfN, GradientProposal, Guide
from steer.pipeline.guided import guided
from steer.search.kernels.draws import finish_move


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
STANDARD = Mixture([[0.0]], [1.0])
LAM, CENTRE = 4.0, 2.0  # of exp(lam r) with r = -(x - 2)^2 / 2, of curvature 1


def near_two(x: Tensor) -> Tensor:
    return -((x[:, 0] - CENTRE) ** 2) / 2


def tilted(variance: float) -> tuple[float, float]:
    """Mean and variance of N(0, v) times exp(lam r)."""
    new = variance / (1 + LAM * variance)
    return LAM * CENTRE * new, new


def law_of(proposal: GradientProposal, steps: int) -> tuple[float, float]:
    """Mean and variance of what the moves of a proposal lead to, from N(0, 1).

    The move of a Gaussian is affine in x, so two rows give it, and the law is a recursion.
    """

    def search(ctx: Any, start: Population) -> Any:
        m, v = 0.0, 1.0
        for step in ctx.steps:
            x = torch.tensor([0.0, 1.0], dtype=start.x.dtype).view_as(start.x).requires_grad_()
            output = yield from ctx.denoise(start.at(x), step, grad=True)
            move = yield from finish_move(proposal(ctx, step, start.at(x), output))
            origin, there = move.mean.flatten().tolist()
            m, v = origin + (there - origin) * m, (there - origin) ** 2 * v + move.std**2
        return m, v

    found, _ = run(
        Toy(STANDARD, "ddpm", torch.float64), search, 2, on_points(near_two), steps=steps
    )
    return found


def test_the_damped_gradient_leads_to_the_tilt_and_the_raw_one_beyond_it() -> None:
    """N(1.6, 0.2) exactly; undamped it is N(1.963, 0.125). Both in the limit of many steps."""
    assert tilted(1.0) == pytest.approx((1.6, 0.2))
    damped = law_of(GradientProposal(lam=LAM, pull=None, damping=LAM), 500)
    raw = law_of(GradientProposal(lam=LAM, pull=None), 500)
    assert damped == pytest.approx((1.6, 0.2), abs=0.025)  # 0.04 off in half as many steps
    assert raw == pytest.approx((1.963, 0.125), abs=0.005)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.3, math.sqrt(0.91)), (1.0, 7.0), (0.6, 0.4)])
def test_the_factor_is_that_of_the_value_function(alpha: float, sigma: float) -> None:
    """grad log E[exp(lam r(x0)) | x] by quadrature, over lam grad r(E[x0 | x])."""
    step = Step(0, 1, torch.tensor(0), alpha, sigma, 1.0, 0.0, "epsilon")
    x = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    share = alpha / (alpha**2 + sigma**2)
    spread = sigma / math.hypot(alpha, sigma)
    grid = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    clean = share * x + spread * grid
    logs = LAM * near_two(clean[:, None]) - grid**2 / 2
    (exact,) = torch.autograd.grad(logs.logsumexp(0), x)
    plain = LAM * (CENTRE - share * float(x.detach())) * share
    assert float(exact) == pytest.approx(plain * damping(step, LAM), rel=1e-6)
    assert damping(step, 0.0) == 1.0


def test_damped_potentials_keep_the_law_and_waste_fewer_particles() -> None:
    """With the damped gradient as the proposal all particles weigh nearly the same."""
    steps, n, worst = 24, 200, {}
    mean, variance = tilted(gaussian_chain(STANDARD, SCHEDULERS["ddim"](), steps)[1])
    for strength in (0.0, LAM):
        method = SMC(
            n,
            lam=LAM,
            standardise=False,
            when=every(4),
            proposal=GradientProposal(lam=LAM, pull=None, damping=strength),
            damping=strength,
        )
        pipe, reward = Toy(STANDARD, "ddim", torch.float64), on_points(near_two)
        cloud, report = run(pipe, method.filter, n, reward, steps=steps)
        worst[strength] = min(row["ess"] for row in report.trace.of("weights")) / n
    assert worst[0.0] < 0.5 < 0.7 < worst[LAM]
    x, weights = cloud.population.x.flatten().double(), normalise(cloud.log_weights)[0]
    centre = float(weights @ x)
    assert centre == pytest.approx(mean, abs=0.1)  # three standard errors of 200 draws
    assert float(weights @ (x - centre) ** 2) == pytest.approx(variance, abs=0.08)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "flow"])
def test_guide_divides_its_shift(scheduler: str) -> None:
    reward = on_points(near_two)

    def shifts(method: Guide) -> list[float]:
        generator = torch.Generator().manual_seed(0)
        pipe = Toy(Mixture([[0.7]], [0.5]), scheduler, torch.float64)
        out = guided(pipe, reward, method=method)("", num_inference_steps=8, generator=generator)
        return [row["shift"][0] for row in out.report.trace.of("guide")]

    def shares(ctx: Any, start: Population) -> Any:
        yield from ctx.denoise(start, ctx.steps[0])
        return [step.sigma**2 / (step.alpha**2 + step.sigma**2) for step in ctx.steps]

    variances, _ = run(Toy(STANDARD, scheduler), shares, 1, reward, steps=8)
    found = shifts(Guide(BestOfN(1), strength=0.05, when=every(1), damping=3.0))
    assert found == pytest.approx([0.05 / (1 + 3.0 * p) for p in variances], rel=1e-6)
    plain = shifts(Guide(BestOfN(1), strength=0.05, when=every(1)))
    assert plain == pytest.approx([0.05] * 8, rel=1e-6)


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf, None, "much"])
def test_a_damping_that_is_none_is_named(strength: Any) -> None:
    with pytest.raises(ValueError, match="damping"):
        Guide(BestOfN(1), damping=strength)
    with pytest.raises(ValueError, match="damping"):
        SMC(4, damping=strength)
    with pytest.raises(ValueError, match="damping"):
        GradientProposal(lam=1.0, damping=strength)
    with pytest.raises(ValueError, match="damping=2"):
        GradientProposal(pull=0.5, damping=2.0)
