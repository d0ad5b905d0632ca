"""Guidance against closed forms: scores of empirical mixtures, finite differences, exact laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch import Tensor
from toy import SCHEDULERS, Mixture, Toy, gaussian_chain, on_points, points, run

from steer.core.ddim import ddim, snr_ratio
from steer.core.resampling import log_mean_exp, normalise
from steer.core.types import Population, Query, Step
from steer.core.when import at, between, every
from steer.methods import (
    SMC,
    BestOfN,
    BestOfNGuidance,
    GradientProposal,
    Guide,
    LookaheadGuidance,
)
from steer.pipeline.guided import guided
from steer.rewards.parts import identity
from steer.search.guidance import reach, reward_gradient, shift_output
from steer.search.kernels.draws import finish_move
from steer.search.lookahead import LookaheadSet, pull_towards_reward, standardise


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
GAUSSIAN = Mixture([[0.7]], [0.5])
TWO = Mixture([[-2.0], [1.0]], [0.5, 0.4], [0.3, 0.7])
PLANE = Mixture([[0.7, -0.4], [-1.0, 0.5]], [0.5, 0.3])
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


def wavy(x: Tensor) -> Tensor:
    """A reward without symmetry, in two coordinates."""
    return torch.sin(1.3 * x[:, 0]) + 0.2 * x[:, 0] * x[:, -1] - 0.1 * x[:, -1] ** 2


def first(x: Tensor) -> Tensor:
    return x[:, 0]


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(PREDICTIONS),
    alpha=st.floats(0.02, 1),
    sigma=st.floats(0.02, 50),
    seed=st.integers(0, 99),
)
def test_a_shift_arrives_in_x0(kind: Any, alpha: float, sigma: float, seed: int) -> None:
    step = Step(0, 1, torch.tensor(0), alpha, sigma, 1.0, 0.0, kind)
    x, output, shift = torch.randn(
        3, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    got = step.x0(x, shift_output(step, output, shift))
    torch.testing.assert_close(got, step.x0(x, output) + shift, rtol=1e-9, atol=1e-9)
    half = output.half()
    assert torch.equal(shift_output(step, half, torch.zeros(2, 4)), half)
    assert shift_output(step, half, shift).dtype == torch.float16


def on_grid(scheduler: str, search: Callable[..., Any], n: int, reward: Any, **options: Any) -> Any:
    """What `search(ctx, start)` finds on the plane."""
    return run(Toy(PLANE, scheduler), search, n, reward, **options)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler_a", "ddpm", "dpm++2m", "flow"])
def test_reach_is_that_of_the_move(scheduler: str) -> None:
    """1 - r without noise, 1 - r^2 with it, (s - s') / (s (1 - s')) on flow grids."""

    def search(ctx: Any, start: Population) -> Any:
        yield from ctx.denoise(start, ctx.steps[0])
        return [(step, reach(ctx, step)) for step in ctx.steps]

    found, _ = on_grid(scheduler, search, 2, on_points(wavy, 2), steps=8)
    for step, share in found:
        ratio = snr_ratio(step)
        expected = 1 - ratio**2 if scheduler in ("euler_a", "ddpm") else 1 - ratio
        if scheduler == "flow":
            passed = (step.sigma - step.sigma_next) / (step.sigma * (1 - step.sigma_next))
            assert share == pytest.approx(passed, rel=1e-4)
        assert share == pytest.approx(expected, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler_a", "flow"])
def test_the_gap_closes_by_exactly_the_pull(scheduler: str, eta: float) -> None:
    """Of x' = alpha' x0 + ..., the part of x0 moves by `pull` of the gap, whatever the solver."""
    method = BestOfNGuidance(5, pull=0.35, when=at(3))

    def search(ctx: Any, start: Population) -> Any:
        now, solver = start, ctx.solver(start)
        for step in ctx.steps:
            output = yield from ctx.denoise(now, step)
            if step.index == 3:
                pulled = method._pull(ctx, now, step, output, method._pulls(ctx)[3])
                plain = solver.copy().step(step, now.x, output, now.ids)
                moved = solver.step(step, now.x, pulled, now.ids)
                x0 = step.x0(now.x, output)
                return (moved - plain) / step.alpha_next, x0, ctx.evaluate(now.at(x0), step)
            now = now.at(solver.step(step, now.x, output, now.ids))
        return None

    (moved, x0, rewards), _ = on_grid(
        scheduler, search, 5, on_points(wavy, 2), steps=8, eta=eta, width=5
    )
    gap = x0[rewards.argmax()] - x0
    assert float(gap.abs().max()) > 0.1
    torch.testing.assert_close(moved, 0.35 * gap, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("pull", "window"), [(0.9, at(2, 4, 5)), (0.5, between(0.3, 0.8))])
def test_windows_share_the_pull(pull: float, window: Any) -> None:
    """What is left of the gap after the window: the product of what each step leaves."""
    method = BestOfNGuidance(2, pull=pull, when=window)

    def search(ctx: Any, start: Population) -> Any:
        yield from ctx.denoise(start, ctx.steps[0])
        scales = method._pulls(ctx)
        return [1 - scale * reach(ctx, ctx.steps[i]) for i, scale in scales.items()]

    left, _ = on_grid("ddim", search, 2, on_points(wavy, 2), steps=10)
    assert len(left) == len(window.indices(10))
    assert math.prod(left) == pytest.approx(1 - pull)


@pytest.mark.parametrize(
    ("alpha", "sigma"), [(0.3, math.sqrt(1 - 0.09)), (1.0, 7.0), (0.6, 0.4), (0.99, 0.05)]
)
def test_lookahead_guidance_is_the_score_of_the_reweighted_mixture(
    alpha: float, sigma: float
) -> None:
    """Against automatic differentiation of its log-density; float64."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(7, 3, 2, generator=generator, dtype=torch.float64)
    r = 2 * torch.randn(7, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 3, 2, generator=generator, dtype=torch.float64) * math.hypot(alpha, sigma)

    def score(log_weights: Tensor) -> Tensor:
        at_x = x.clone().requires_grad_()
        squares = (at_x[:, None] - alpha * z).pow(2).flatten(2).sum(2)
        density = (log_weights - squares / (2 * sigma**2)).logsumexp(1)
        return torch.autograd.grad(density.sum(), at_x)[0]

    got, weights = pull_towards_reward(x, alpha, sigma, z, r)
    torch.testing.assert_close(
        alpha / sigma**2 * got, score(r) - score(torch.zeros_like(r)), rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler_a", "dpm++2m", "flow"])
def test_lookahead_guidance_samples_the_reweighted_mixture(scheduler: str) -> None:
    """Data that are the lookahead set itself: at strength 1 the run of the reweighted model."""
    z = torch.tensor([[-1.5], [-0.4], [0.9], [1.4]], dtype=torch.float64)
    rewards, lam = torch.tensor([0.1, -0.3, 0.5, 0.2], dtype=torch.float64), 1.2
    weights = (lam * standardise(rewards)).softmax(0)
    reward, thin = on_points(first), [1e-4] * 4
    method = LookaheadGuidance(
        1,
        lam=lam,
        strength=1.0,
        when=every(1),
        lookahead=LookaheadSet({"": z.view(4, 1, 1, 1)}, {"": rewards.float()}, identity(reward)),
    )

    def sample(mixture: Mixture, **options: Any) -> Tensor:
        pipe = Toy(mixture, scheduler, torch.float64)
        given = {"num_images_per_prompt": 24, "generator": torch.Generator().manual_seed(1)}
        out = (guided(pipe, reward, **options) if options else pipe)("", **given)
        return out.images.flatten().double()

    expected = sample(Mixture(z.tolist(), thin, weights.tolist()))
    got = sample(Mixture(z.tolist(), thin), method=method)
    plain = sample(Mixture(z.tolist(), thin))
    assert float((plain - expected).abs().max()) > 0.5
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)


def finite_differences(f: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-5) -> Tensor:
    """Central differences of `f: (B, dim) -> (B,)`, float64."""
    columns = []
    for axis in range(x.shape[1]):
        bump = torch.zeros_like(x)
        bump[:, axis] = h
        columns.append((f(x + bump) - f(x - bump)) / (2 * h))
    return torch.stack(columns, 1)


def test_the_gradient_at_x0_equals_finite_differences() -> None:
    def search(ctx: Any, start: Population) -> Any:
        output = yield from ctx.denoise(start, ctx.steps[0])
        x0 = ctx.steps[0].x0(start.x, output).double()
        return x0, *reward_gradient(ctx, start.at(x0))

    (x0, rewards, gradient), report = on_grid("ddim", search, 6, on_points(wavy, 2), width=2)
    flat = x0.flatten(1)
    expected = finite_differences(wavy, flat)
    torch.testing.assert_close(gradient.flatten(1).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rewards.double(), wavy(flat), rtol=1e-4, atol=1e-4)
    assert report.ledger.backward_rows == 0


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "flow"])
@pytest.mark.parametrize("through", ["x0", "denoiser"])
def test_the_shift_of_a_guided_step(scheduler: str, through: Any) -> None:
    """x0 moves by `strength` of its norm along the gradient that finite differences give."""
    method = Guide(BestOfN(1), strength=0.07, through=through)

    def search(ctx: Any, start: Population) -> Any:
        now, solver = start, ctx.solver(start)
        for step in ctx.steps[:4]:
            output = yield from ctx.denoise(now, step)
            now = now.at(solver.step(step, now.x, output, now.ids))
        step = ctx.steps[4]
        plain = yield from ctx.denoise(now, step)
        moved = yield from method._answer(ctx, Query(now.x, step, ids=now.ids))
        return step, now.x.flatten(1), step.x0(now.x, plain), step.x0(now.x, moved)

    reward = on_points(wavy, 2)
    pipe = Toy(PLANE, scheduler, torch.float64)
    (step, x, x0, changed), _ = run(pipe, search, 5, reward, steps=8, width=5)
    x0, changed = x0.flatten(1), changed.flatten(1)
    alpha, sigma = (torch.full((5,), v, dtype=torch.float64) for v in (step.alpha, step.sigma))
    of_noisy = lambda x: wavy(PLANE.posterior_mean(x, alpha, sigma))  # noqa: E731
    slope = finite_differences(*((wavy, x0) if through == "x0" else (of_noisy, x)))
    direction = slope / slope.norm(dim=1, keepdim=True)
    expected = x0 + 0.07 * x0.norm(dim=1, keepdim=True) * direction
    torch.testing.assert_close(changed, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("through", ["x0", "denoiser"])
def test_a_share_of_the_velocity(through: Any) -> None:
    """FMRG: an Euler step of a flow model goes along u + lam |u| g / |g|, g from differences."""
    method = Guide(BestOfN(1), strength=2.0, through=through, schedule="velocity")

    def search(ctx: Any, start: Population) -> Any:
        step = ctx.steps[1]
        plain = yield from ctx.denoise(start, step)
        moved = yield from method._answer(ctx, Query(start.x, step, ids=start.ids))
        return step, start.x.flatten(1), plain.flatten(1), moved.flatten(1)

    pipe = Toy(PLANE, "flow", torch.float64)
    (step, x, u, changed), _ = run(pipe, search, 5, on_points(wavy, 2), steps=8, width=5)
    alpha, sigma = (torch.full((5,), v, dtype=torch.float64) for v in (step.alpha, step.sigma))
    of_noisy = lambda x: wavy(PLANE.posterior_mean(x, alpha, sigma))  # noqa: E731
    slope = finite_differences(*((wavy, x - step.sigma * u) if through == "x0" else (of_noisy, x)))
    expected = u - 2.0 * u.norm(dim=1, keepdim=True) * slope / slope.norm(dim=1, keepdim=True)
    torch.testing.assert_close(changed, expected, rtol=1e-3, atol=1e-3)


def test_a_proposal_follows_the_gradient_of_its_reward() -> None:
    """The mean moves by std^2 lam grad_x r(x0(x)), and no further than `pull`."""
    proposals = [
        GradientProposal(lam=1.5, pull=None),
        GradientProposal(lam=1.5, pull=0.05),
        GradientProposal(pull=0.3),
        GradientProposal(pull=0.3, through="x0"),
        GradientProposal(lam=1.5, pull=None, temper=0.008),
        GradientProposal(when=at(0)),
    ]

    def search(ctx: Any, start: Population) -> Any:
        step, found = ctx.steps[3], []
        for proposal in proposals:
            leaf = start.at(start.x.detach().requires_grad_())
            output = yield from ctx.denoise(leaf, step, grad=proposal.grad)
            base = ddim(step, leaf.x.detach(), step.x0(leaf.x, output).detach(), 1.0)
            move = yield from finish_move(proposal(ctx, step, leaf, output))
            assert move.std == base.std and not move.mean.requires_grad
            found.append(((move.mean - base.mean).flatten(1) / base.std).double())
        return step, base.std, start.x.flatten(1).double(), found

    pipe = Toy(PLANE, "ddim", torch.float64)
    (step, std, x, found), _ = run(pipe, search, 4, on_points(wavy, 2), steps=8)
    alpha, sigma = (torch.full((4,), v, dtype=torch.float64) for v in (step.alpha, step.sigma))
    slope = finite_differences(lambda x: wavy(PLANE.posterior_mean(x, alpha, sigma)), x)
    free, capped, pulled, cheap, warm, off = found
    torch.testing.assert_close(free, 1.5 * std * slope, rtol=2e-3, atol=1e-4)
    lengths = free.norm(dim=1).clamp(max=0.05)
    torch.testing.assert_close(capped.norm(dim=1), lengths, rtol=1e-3, atol=1e-6)
    for shift in (pulled, cheap):
        torch.testing.assert_close(shift.norm(dim=1), torch.full_like(lengths, 0.3))
    cosine = torch.nn.functional.cosine_similarity(pulled, slope)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-3)
    torch.testing.assert_close(warm, (1.008**50 - 1) * free)
    assert not off.any()


def distance(cloud: Any, cdf: Any) -> float:
    """Kolmogorov-Smirnov distance of the first coordinate's weighted particles from a law."""
    x = cloud.population.x[: cloud.size].flatten(1)[:, 0].double().numpy()
    weights, order = normalise(cloud.log_weights)[0].numpy(), np.argsort(x)
    above, exact = np.cumsum(weights[order]), cdf(x[order])
    return float(max((above - exact).max(), (exact - above + weights[order]).max()))


@pytest.mark.sample(1, 2)
@pytest.mark.parametrize(
    "proposal",
    [
        GradientProposal(lam=1.5, pull=None),
        GradientProposal(lam=1.5, pull=None, through="x0"),
        GradientProposal(pull=0.4),
    ],
)
def test_guided_particle_filtering_keeps_the_law(proposal: GradientProposal) -> None:
    """DAS: the exact tilted law of the discretised sampler, and its evidence."""
    method = SMC(1500, lam=1.5, standardise=False, when=every(1), proposal=proposal)
    cloud, report = run(Toy(GAUSSIAN), method.filter, 1500, on_points(first), steps=8)
    mean, variance = gaussian_chain(GAUSSIAN, SCHEDULERS["ddim"](), 8)
    assert distance(cloud, stats.norm(mean + 1.5 * variance, variance**0.5).cdf) < 0.06
    evidence = float(cloud.log_evidence + log_mean_exp(cloud.log_weights))
    assert evidence == pytest.approx(1.5 * mean + 1.5**2 * variance / 2, abs=0.06)
    assert report.ledger.backward_rows == (8 * 1500 if proposal.grad else 0)
    assert method.cost(8) == (3 * 8 + 1 if proposal.grad else 8) * 1500


def test_guided_evidence_is_unbiased() -> None:
    """The mean of 300 estimates by 5 particles each; guided ones scatter less."""
    lam, count, spread = 2.0, 300, {}
    mean, variance = gaussian_chain(GAUSSIAN, SCHEDULERS["ddim"](), 6)
    exact = math.exp(lam * mean + lam**2 * variance / 2)
    for proposal in (None, GradientProposal(lam=lam, pull=None)):
        method = SMC(5, lam=lam, standardise=False, when=every(2), proposal=proposal)
        cloud, _ = run(
            Toy(GAUSSIAN), method.filter, 5, on_points(first), prompt=[""] * count, steps=6
        )
        estimates = (cloud.log_evidence + log_mean_exp(cloud.log_weights)).exp()
        spread[proposal] = float(estimates.std())
        error = spread[proposal] / count**0.5
        assert float(estimates.mean()) == pytest.approx(exact, abs=4 * error)
    guided_spread, plain_spread = spread.popitem()[1], spread.popitem()[1]
    assert guided_spread < 0.7 * plain_spread


def test_a_guided_mixture() -> None:
    """A non-linear reward and two modes: the tilted density."""

    def reward(x: Tensor) -> Tensor:
        return -((x[:, 0] + 1.5) ** 2) / 2

    proposal = GradientProposal(lam=1.0, pull=1.0)
    method = SMC(1000, lam=1.0, standardise=False, when=every(2), proposal=proposal)
    cloud, _ = run(Toy(TWO), method.filter, 1000, on_points(reward), steps=40)
    assert distance(cloud, TWO.tilted(reward).cdf) < 0.08
    assert distance(cloud, TWO.tilted(lambda x: 0 * x[:, 0]).cdf) > 0.2


def mean_reward(method: Any, scheduler: str = "ddim", mixture: Mixture = TWO) -> tuple[float, Any]:
    """Mean reward of 40 images, all that a method of one particle gives, and the report."""
    reward = on_points(lambda x: -((x[:, 0] - 1.6) ** 2))
    out = guided(Toy(mixture, scheduler), reward, method=method, lane_width=1)(
        "", num_images_per_prompt=40, generator=torch.Generator().manual_seed(0), output_type="pt"
    )
    assert out.rewards == pytest.approx((-((points(out.images)[:, 0] - 1.6) ** 2)).tolist(), 1e-3)
    return float(np.mean(out.rewards)), out.report


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++2m", "euler_a", "flow"])
@pytest.mark.parametrize(
    "method",
    [
        Guide(BestOfN(1), 0.2, between(0.2, 0.9)),
        Guide(BestOfN(1), 0.2, between(0.2, 0.9), through="denoiser"),
        Guide(BestOfN(1), 0.4, between(0.2, 0.9), inner=3, schedule="noise"),
        LookaheadGuidance(1, lookaheads=2, through=5, lam=3.0, when=between(0.0, 0.8)),
    ],
)
def test_the_reward_rises(method: Any, scheduler: str) -> None:
    """Mean rewards of single particles, no selection among them."""
    plain, _ = mean_reward(BestOfN(1), scheduler)
    better, _ = mean_reward(method, scheduler)
    assert better > plain + 0.5


def test_best_of_n_guidance_raises_the_mean() -> None:
    def everyone(pull: float) -> float:
        method = BestOfNGuidance(8, pull=pull)
        reward = on_points(lambda x: -((x[:, 0] - 1.6) ** 2))
        out = guided(Toy(TWO), reward, method=method)([""] * 20)
        last = [r for e in out.report.trace.of("score") if not e["preview"] for r in e["reward"]]
        assert len(last) == 160
        return float(np.mean(last))

    assert everyone(0.9) > everyone(0.0) + 0.5


def test_work_is_counted_as_it_is_done() -> None:
    for method, decodes, backward in [
        (Guide(BestOfN(3), when=at(1, 4), inner=2), 3 * 4, 0),
        (Guide(BestOfN(3), when=at(1, 4), through="denoiser"), 3 * 2, 3 * 2),
        (Guide(BestOfN(3), when=at(0), through="denoiser"), 3, 3),
        (BestOfNGuidance(3, when=at(2, 3)), 3 * 2, 0),
        (LookaheadGuidance(3, lookaheads=6, through=4), 6, 0),
        (LookaheadGuidance(3, lookaheads=1, through=4, when=at(0)), 1, 0),
    ]:
        pipe = Toy({"left": GAUSSIAN, "right": TWO})
        out = guided(pipe, on_points(first), method=method)(["left", "right"], 8)
        ledger = out.report.ledger
        assert pipe.denoiser.calls == ledger.denoiser_calls
        assert pipe.denoiser.rows == ledger.denoiser_rows
        assert pipe.vae.decodes == ledger.decodes == ledger.reward_calls == 2 * (decodes + 3)
        assert ledger.backward_rows == 2 * backward
        if not backward:  # else the cost is the most that it may be
            assert ledger.equivalent_rows == 2 * method.cost(8), method
        assert ledger.equivalent_rows <= 2 * method.cost(8), method
