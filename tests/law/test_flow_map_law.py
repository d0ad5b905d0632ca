"""Flow maps against closed forms: the flow of a Gaussian is linear and known exactly."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from flow_law import chain_law, flow_grid
from flow_maps import MapToy, flow, spread
from scipy import stats
from torch import Tensor
from toy import Mixture, Toy, on_points, run

import steer
from steer.core.errors import UnsupportedPipelineError, UnsupportedSchedulerError
from steer.core.potentials import tempering
from steer.core.resampling import log_mean_exp, normalise
from steer.core.types import Move, Population, Query, Step
from steer.core.when import at, every
from steer.methods import SMC, BestOfN, GradientProposal, Guide, NoiseTilt
from steer.search.cloud import Cloud
from steer.search.context import Context
from steer.search.kernels.draws import finish_move
from steer.search.kernels.laws import LAWS
from steer.search.kernels.rho import Rho
from steer.search.lookahead import look_ahead
from steer.search.maps import jump_to_clean


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
MEAN, STD = 0.7, 0.5


def first(x: Tensor) -> Tensor:
    return x[:, 0]


def bent(x: Tensor) -> Tensor:
    return -((x[:, 0] - 1.0) ** 2)


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_a_jump_to_clean_latents_is_the_flow_from_every_step(shift: float) -> None:
    pipe = MapToy(MEAN, STD, shift)

    def search(ctx: Context, start: Population) -> Generator[Query, Tensor, list[Tensor]]:
        now, found = start, []
        for step in ctx.steps:
            found.append((yield from jump_to_clean(ctx, now, step)).x)
            output = yield from ctx.denoise(now, step)
            now = now.at(now.x + (step.sigma_next - step.sigma) * output)
        return [start.x, *found, now.x]

    (start, *found), report = run(pipe, search, 4, on_points(first), steps=3)
    assert len(found) == 4
    for clean in found:
        torch.testing.assert_close(clean, flow(start, 1.0, 0.0, MEAN, STD))
    levels = [shift * s / (1 + (shift - 1) * s) for s in (1, 2 / 3, 1 / 3, 0)]
    own = list(pairwise(levels))
    jumps = [pair for here, there in own for pair in ((here, 0.0), (here, there))]
    asked = np.array(pipe.transformer.asked)
    np.testing.assert_allclose(
        asked, [own[0], *jumps], atol=1e-6
    )  # the pipeline's own call comes first
    assert report.ledger.denoiser_calls == len(asked)


@pytest.mark.parametrize("through", [1, 2, 3])
def test_short_runs_jump_from_one_of_their_points_to_the_next(through: int) -> None:
    def search(ctx: Context, start: Population) -> Generator[Query, Tensor, tuple[Tensor, Tensor]]:
        found = yield from look_ahead(ctx, start, 4, through)
        return start.x, found[0][0]

    (start, clean), _ = run(MapToy(MEAN, STD, 5.0), search, 4, on_points(first), steps=3)
    torch.testing.assert_close(clean, flow(start, 1.0, 0.0, MEAN, STD))


def chain(kernel: Rho, steps: list[Step], aimed: bool = True) -> tuple[float, float, float]:
    """Mean and standard deviation of a flow map's samples, and all noise that was drawn."""
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    mean, variance, noise = 0.0, 1.0, 0.0
    for step in steps:
        there = (kernel.aim(step) if aimed else step).sigma_next
        u = (flow(points, step.sigma, there, MEAN, STD) - points) / (there - step.sigma)
        move = kernel(None, step, Population(points, ((0, 0), (0, 1))), u)  # type: ignore[arg-type]
        assert isinstance(move, Move)
        offset, slope = float(move.mean[0]), float(move.mean[1] - move.mean[0])
        mean, variance = offset + slope * mean, slope**2 * variance + move.std**2
        noise += move.std
    return mean, variance**0.5, noise


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("preset", [name for name in LAWS if name != "ode"])
def test_every_law_keeps_the_marginals_of_a_flow_map(preset: str, count: int) -> None:
    """In any number of steps, where a denoiser's mean makes samples that vary less."""
    mean, std, noise = chain(Rho(preset, fresh_start=True), flow_grid(count, 3.0))
    assert (mean, std) == pytest.approx((MEAN, STD))
    assert noise > 0.1


@pytest.mark.parametrize(
    ("preset", "shares"),
    [
        ("ode", (0.681, 0.830, 1.0, 1.0)),
        ("flow-sde", (0.657, 0.804, 0.954, 0.968)),
        ("ddpm", (0.598, 0.735, 0.853, 0.888)),
        ("renoise", (0.539, 0.602, 0.757, 0.726)),
    ],
)
def test_without_the_right_jump_samples_vary_less(preset: str, shares: tuple[float, ...]) -> None:
    """The table in docs/stochastic.md: velocities and jumps to the next point, 4 and 8 steps."""
    kernel, grids = Rho(preset), [flow_grid(4), flow_grid(8)]
    found = [chain_law(kernel, grid, MEAN, STD)[1] ** 0.5 / STD for grid in grids]
    found += [chain(kernel, grid, aimed=False)[1] / STD for grid in grids]
    assert found == pytest.approx(shares, abs=6e-4)
    assert [chain(kernel, grid)[1] for grid in grids] == pytest.approx([STD, STD])


def distance(cloud: Cloud, cdf: Any) -> float:
    """Kolmogorov-Smirnov distance of the first prompt's weighted particles from a law."""
    x = cloud.population.x[: cloud.size].flatten().double().numpy()
    order = np.argsort(x)
    weights = normalise(cloud.log_weights)[0].numpy()[order]
    above, exact = np.cumsum(weights), cdf(x[order])
    return float(max((above - exact).max(), (exact - above + weights).max()))


@pytest.mark.parametrize("kernel", ["flow-sde", "renoise"])
def test_few_steps_reach_the_tilt_of_the_data(kernel: str) -> None:
    """p(x) exp(lam x) is N(mean + lam std^2, std^2), in four steps."""
    lam = 3.0
    method = SMC(1500, lam=lam, standardise=False, kernel=kernel, lookahead="map", when=every(1))
    cloud, report = run(MapToy(MEAN, STD), method.filter, 1500, on_points(first), steps=4)
    assert distance(cloud, stats.norm(MEAN + lam * STD**2, STD).cdf) < 0.07
    assert distance(cloud, stats.norm(MEAN, STD).cdf) > 0.25
    evidence = float(cloud.log_evidence + log_mean_exp(cloud.log_weights))
    assert evidence == pytest.approx(lam * MEAN + lam**2 * STD**2 / 2, abs=0.15)
    assert report.ledger.denoiser_rows == 1500 * (4 + 3) == method.cost(4)
    assert method.cost(4) == method.rows_at(4, range(4))


def test_weights_along_the_flow_are_the_integral_of_the_lookahead_reward() -> None:
    """log w = sum of (lam_k - lam_k') r(X_{t, 1}(x)): FMTT's integral on the steps of the run."""
    given: dict[str, Any] = {"kernel": "ode", "lookahead": "map", "temper": 0.01, "ess": 0.0}
    method = SMC(6, lam=1.5, standardise=False, when=every(2), **given)
    cloud, report = run(MapToy(MEAN, STD), method.filter, 6, on_points(bent), steps=8)
    start = [cloud.roots[name] for name in cloud.population.ids]
    x = torch.stack(start).double()
    told = [row for row in report.trace.of("weights") if row["step"] is not None]
    assert len(told) == 3
    total, before = torch.zeros(6, dtype=torch.float64), 0.0
    for row in told:
        step = flow_grid(8)[row["step"]]
        now = 1.5 * tempering(step, 0.01)
        ahead = flow(flow(x, 1.0, step.sigma, MEAN, STD), step.sigma, 0.0, MEAN, STD)
        total += (now - before) * bent(ahead.flatten(1))
        before = now
        np.testing.assert_allclose(row["log_weights"], total.log_softmax(0), rtol=1e-4)
    whole = 1.5 * bent(flow(x, 1.0, 0.0, MEAN, STD).flatten(1))
    np.testing.assert_allclose(cloud.log_weights[0], whole, rtol=1e-4)


def ahead(x: Tensor, step: Step) -> Tensor:
    return flow(x, step.sigma, 0.0, MEAN, STD)


def test_a_proposal_through_a_map_follows_the_reward_of_where_the_flow_ends() -> None:
    """The mean moves by std^2 lam grad_x r(X_{t, 1}(x)); along the flow dX/dx is std_0 / std_t."""
    lam = 1.5
    proposals = [
        GradientProposal(lam=lam, pull=None, through="map"),
        GradientProposal(pull=0.3, through="map"),
        GradientProposal(lam=lam, pull=None, through="map", when=at(0)),
    ]

    def search(ctx: Context, start: Population) -> Generator[Query, Tensor, tuple[Any, ...]]:
        step, shifts = ctx.steps[1], []
        output = yield from ctx.denoise(start, step)
        base = Move(start.x, 0.4, start.x)
        for proposal in proposals:
            move = yield from finish_move(proposal.shift(base, ctx, step, start, output))
            assert move.std == base.std and not move.mean.requires_grad
            shifts.append((move.mean - start.x).flatten(1))
        return step, start.x, shifts

    (step, x, shifts), report = run(MapToy(MEAN, STD), search, 16, on_points(bent), steps=4)
    slope = 2 * (1.0 - ahead(x, step).flatten(1)) * STD / spread(step.sigma, STD)
    torch.testing.assert_close(shifts[0], 0.4**2 * lam * slope, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shifts[1], 0.3 * 0.4 * slope.sign())
    assert not shifts[2].any()
    assert report.ledger.backward_rows == 2 * 16


GUIDED: dict[str, Any] = {
    "lookahead": "map",
    "standardise": False,
    "kernel": "flow-sde",
    "when": every(1),
}


def test_guided_particles_through_a_map_follow_the_tilt_of_the_data() -> None:
    """The law, the evidence and the cost are right, and the weights are less unequal."""
    rows, lam, least = 500, 3.0, []
    law = stats.norm(MEAN + lam * STD**2, STD)
    for proposal in (None, GradientProposal(lam=lam, pull=None, through="map")):
        method = SMC(rows, lam=lam, proposal=proposal, **GUIDED)
        cloud, report = run(MapToy(MEAN, STD), method.filter, rows, on_points(first), steps=4)
        assert distance(cloud, law.cdf) < 0.1
        evidence = float(cloud.log_evidence + log_mean_exp(cloud.log_weights))
        assert evidence == pytest.approx(lam * MEAN + lam**2 * STD**2 / 2, abs=0.2)
        least.append(min(row["ess"] for row in report.trace.of("weights")[1:]))
        ledger = report.ledger
        assert ledger.denoiser_rows + 2 * ledger.backward_rows <= method.cost(4)
        assert method.cost(4) == rows * (4 + 3 + (3 * 3 if proposal else 0))
        assert method.rows_at(4, range(4)) == method.work(4).rows
    assert least[1] > 1.5 * least[0]


def test_evidence_through_a_map_is_unbiased() -> None:
    """The mean of 150 estimates by 5 particles each, of the data's own law in four steps."""
    lam, count, errors = 1.5, 150, []
    exact = math.exp(lam * MEAN + lam**2 * STD**2 / 2)
    for proposal in (None, GradientProposal(lam=lam, pull=None, through="map")):
        method = SMC(5, lam=lam, proposal=proposal, **GUIDED)
        pipe = MapToy(MEAN, STD)
        cloud, _ = run(pipe, method.filter, 5, on_points(first), prompt=[""] * count, steps=4)
        estimates = (cloud.log_evidence + log_mean_exp(cloud.log_weights)).exp()
        errors.append(float(estimates.std()) / count**0.5)
        assert float(estimates.mean()) == pytest.approx(exact, abs=4 * errors[-1])
    assert errors[1] < 0.85 * errors[0] < 0.05 * exact


def test_guidance_through_a_map_follows_the_reward_of_where_the_flow_ends() -> None:
    """x0 moves by strength |X_{t, 1}(x)| along the sign of d r(X_{t, 1}(x)) / dx, in one number."""
    method = Guide(BestOfN(1), strength=0.2, through="map")

    def search(ctx: Context, start: Population) -> Generator[Query, Tensor, tuple[Any, ...]]:
        step = ctx.steps[1]
        plain = yield from ctx.denoise(start, step)
        moved = yield from method._answer(ctx, Query(start.x, step, ids=start.ids))
        return step, start.x, step.x0(start.x, plain), step.x0(start.x, moved)

    found, _ = run(MapToy(MEAN, STD), search, 64, on_points(bent), steps=4, width=64)
    step, x, x0, changed = found
    end = ahead(x, step)
    assert len({bool(a) for a in end.flatten() < 1}) == 2  # some must go up, some down
    expected = x0 + 0.2 * end.abs() * (1.0 - end).sign()
    torch.testing.assert_close(changed, expected)


def test_guidance_through_a_map_raises_the_reward_at_its_cost() -> None:
    found = {}
    for strength in (0.0, 0.1):
        method = Guide(BestOfN(1), strength=strength, when=every(1), through="map")
        pipe = MapToy(MEAN, STD)
        guided = steer.guided(pipe, on_points(bent), method=method)
        out = guided("p", num_inference_steps=4, generator=torch.Generator().manual_seed(3))
        found[strength] = out.rewards[0]
        ledger = out.report.ledger
        assert ledger.denoiser_rows + 2 * ledger.backward_rows == method.cost(4)
    assert found[0.1] > found[0.0]


def test_guidance_through_a_map_needs_a_map() -> None:
    pipe = Toy(Mixture([[MEAN]], [STD]), "flow")
    method = Guide(BestOfN(1), through="map")
    with pytest.raises(UnsupportedPipelineError, match=r"Guide: through='map' needs a flow map"):
        run(pipe, method, 1, on_points(first), steps=8)
    with pytest.raises(ValueError, match="inner=2 with through='map'"):
        Guide(BestOfN(1), through="map", inner=2)


@pytest.mark.parametrize(
    "option",
    [
        {"proposal": GradientProposal(through="map", when=at(0.5))},
        {"kernel": NoiseTilt(through="map")},
    ],
)
def test_a_gradient_through_a_map_needs_a_map(option: dict[str, Any]) -> None:
    pipe = Toy(Mixture([[MEAN]], [STD]), "flow")
    with pytest.raises(UnsupportedPipelineError, match=r": through='map' needs a flow map"):
        run(pipe, SMC(2, **option).filter, 2, on_points(first), steps=10)
    assert pipe.denoiser.calls == 1  # the pipeline's own


def test_lookahead_by_a_map_needs_a_map() -> None:
    pipe = Toy(Mixture([[MEAN]], [STD]), "flow")
    method = SMC(2, kernel="flow-sde", lookahead="map", when=at(0.5))
    with pytest.raises(UnsupportedPipelineError, match=r"lookahead='map' needs a flow map.*'x0'"):
        run(pipe, method.filter, 2, on_points(first), steps=4)
    assert pipe.denoiser.calls == 1  # the pipeline's own


def test_an_inner_flow_needs_posterior_means() -> None:
    method = SMC(2, kernel=Rho("flow-sde", inner=2))
    with pytest.raises(UnsupportedSchedulerError, match=r"flow map of MapToy.*use inner=1"):
        run(MapToy(), method.filter, 2, on_points(first), steps=4)


def test_lookahead_has_two_values() -> None:
    with pytest.raises(ValueError, match="lookahead='jump'"):
        SMC(2, lookahead="jump")  # type: ignore[arg-type]
    assert replace(SMC(2), lookahead="map").cost(10) == 2 * (10 + 4)
    assert math.isclose(SMC(1, lookahead="map").cost(10), 10)
