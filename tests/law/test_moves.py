"""`ddim` moves against closed forms: Gaussian data with its exact denoiser, DDPM, diffusers."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from steer.core.ddim import ddim, snr_ratio
from steer.core.types import Move, Step
from steer.driver.grid import Schedule


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
GRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vp": ("DDIMScheduler", SD),
    "vp-zero-snr": (
        "DDIMScheduler",
        {
            **SD,
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
        },
    ),
    "ve": ("EulerDiscreteScheduler", {**SD, "use_karras_sigmas": True}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}
MEAN = torch.tensor([0.7, -1.1])
CHOLESKY = torch.tensor([[0.6, 0.0], [0.3, 0.4]])
COVARIANCE = CHOLESKY @ CHOLESKY.T


def schedule_of(name: str, steps: int) -> Schedule:
    cls, config = GRIDS[name]
    scheduler = getattr(diffusers, cls)(**config)
    scheduler.set_timesteps(steps)
    return Schedule.from_scheduler(scheduler)


def posterior_mean(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x0 | x] for Gaussian data: MEAN + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha MEAN)."""
    spread = alpha**2 * COVARIANCE + sigma**2 * torch.eye(2)
    return MEAN + (x - alpha * MEAN) @ torch.linalg.solve(spread, alpha * COVARIANCE)


def posterior_covariance(alpha: float, sigma: float) -> Tensor:
    """Cov[x0 | x] = C - alpha^2 C (alpha^2 C + sigma^2 I)^-1 C."""
    spread = alpha**2 * COVARIANCE + sigma**2 * torch.eye(2)
    return COVARIANCE - alpha**2 * COVARIANCE @ torch.linalg.solve(spread, COVARIANCE)


def begin(step: Step, rows: int, generator: torch.Generator) -> Tensor:
    """Exact draws from the marginal at the first step."""
    data = MEAN + torch.randn(rows, 2, generator=generator) @ CHOLESKY.T
    return step.alpha * data + step.sigma * torch.randn(rows, 2, generator=generator)


@pytest.mark.sample
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampling_reaches_the_target(name: str, eta: float) -> None:
    """Mean and covariance of 20,000 particles, standard error 0.005, bias O(1 / steps)."""
    generator = torch.Generator().manual_seed(0)
    schedule = schedule_of(name, 200 if eta == 0 else 1000)
    x = begin(schedule[0], 20_000, generator)
    for step in schedule:
        move = ddim(step, x, posterior_mean(x, step.alpha, step.sigma), eta)
        x = move.sample(torch.randn(x.shape, generator=generator))
    assert (x.mean(0) - MEAN).abs().max() < 0.02
    assert (torch.cov(x.T) - COVARIANCE).abs().max() < 0.02


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_posterior_draws_are_exact_in_few_steps(name: str, eta: float) -> None:
    """With x0 drawn from p(x0 | x) instead of its mean there is no discretisation error."""
    generator = torch.Generator().manual_seed(0)
    schedule = schedule_of(name, 5)
    x = begin(schedule[0], 40_000, generator)
    for step in schedule:
        spread = torch.linalg.cholesky(posterior_covariance(step.alpha, step.sigma).double())
        jitter = torch.randn(x.shape, generator=generator) @ spread.T.float()
        x0 = posterior_mean(x, step.alpha, step.sigma) + jitter
        x = ddim(step, x, x0, eta).sample(torch.randn(x.shape, generator=generator))
    assert (x.mean(0) - MEAN).abs().max() < 0.015
    assert (torch.cov(x.T) - COVARIANCE).abs().max() < 0.015


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_step_keeps_the_marginal_when_x0_is_known(name: str, eta: float) -> None:
    """With the true x0 the next point is exactly alpha' x0 + sigma' noise, for every eta."""
    generator = torch.Generator().manual_seed(1)
    x0 = torch.full((40_000, 1), 1.3)
    for step in schedule_of(name, 6):
        x = step.alpha * x0 + step.sigma * torch.randn(x0.shape, generator=generator)
        got = ddim(step, x, x0, eta).sample(torch.randn(x0.shape, generator=generator))
        scale = max(step.sigma_next, 1e-3)
        assert float(got.mean()) == pytest.approx(step.alpha_next * 1.3, abs=0.02 * scale)
        assert float(got.std()) == pytest.approx(step.sigma_next, abs=0.015 * scale + 1e-5)


def test_eta_one_is_the_ddpm_posterior() -> None:
    """Ho et al. 2020 (arXiv:2006.11239), eq. 6 and 7, in its own symbols."""
    schedule = schedule_of("vp", 10)
    x, x0 = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2)).unbind(0)
    for step in schedule:
        bar, bar_before = step.alpha**2, step.alpha_next**2
        alpha = bar / bar_before
        beta = 1 - alpha
        variance = (1 - bar_before) / (1 - bar) * beta
        mean = (math.sqrt(bar_before) * beta * x0 + math.sqrt(alpha) * (1 - bar_before) * x) / (
            1 - bar
        )
        move = ddim(step, x, x0, 1.0)
        torch.testing.assert_close(move.mean, mean, rtol=1e-4, atol=1e-5)
        assert move.std**2 == pytest.approx(variance, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_equals_diffusers_ddim(prediction: str, eta: float) -> None:
    scheduler = diffusers.DDIMScheduler(**SD, prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(10)
    x, output, noise = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(3)).unbind(0)
    for step in Schedule.from_scheduler(scheduler):
        options = {"eta": eta, "variance_noise": noise if eta else None}
        expected = scheduler.step(output, step.t, x, **options).prev_sample
        got = ddim(step, x, step.x0(x, output), eta).sample(noise)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ve", "flow"])
def test_eta_zero_equals_diffusers_euler(name: str) -> None:
    cls, config = GRIDS[name]
    scheduler = getattr(diffusers, cls)(**config)
    scheduler.set_timesteps(10)
    x, output = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(3)).unbind(0)
    for step in Schedule.from_scheduler(scheduler):
        expected = scheduler.step(output, step.t, x).prev_sample
        got = ddim(step, x, step.x0(x, output)).mean
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        x = expected


def test_ancestral_euler_is_eta_one() -> None:
    """EulerAncestral's sigma_up and sigma_down are the posterior on a VE grid."""
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SD)
    scheduler.set_timesteps(10)
    x, output = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(3)).unbind(0)
    for i, step in enumerate(Schedule.from_scheduler(scheduler)):
        generator = torch.Generator().manual_seed(i)
        expected = scheduler.step(output, step.t, x, generator=generator).prev_sample
        noise = torch.randn(x.shape, generator=generator.manual_seed(i))
        got = ddim(step, x, step.x0(x, output), 1.0).sample(noise)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        x = expected


@settings(deadline=None, max_examples=60)
@given(
    alpha=st.floats(0, 1),
    sigma=st.floats(1e-3, 100),
    alpha_next=st.floats(1e-3, 1),
    shrink=st.floats(0, 1),
    eta=st.floats(0, 1),
)
def test_always_finite_and_never_noisier_than_allowed(
    alpha: float, sigma: float, alpha_next: float, shrink: float, eta: float
) -> None:
    """For any denoising step: kept and fresh noise add up to sigma', nothing is NaN."""
    sigma_next = shrink * sigma * alpha_next / max(alpha, alpha_next)
    t = torch.tensor(0)
    step = Step(0, 1, t, alpha, sigma, alpha_next, sigma_next, "epsilon")
    x, x0 = torch.tensor([[2.0]]), torch.tensor([[0.5]])
    move = ddim(step, x, x0, eta)
    kept = (move.mean - alpha_next * x0) / step.noise(x, x0)
    assert move.mean.isfinite().all()
    assert 0 <= move.std <= sigma_next * (1 + 1e-6)
    if abs(2.0 - alpha * 0.5) > 1e-3 and sigma_next > 1e-3:
        assert float(kept) ** 2 + move.std**2 == pytest.approx(sigma_next**2, rel=1e-2, abs=1e-4)
    assert 0 <= snr_ratio(step) <= 1 + 1e-9


def test_density_of_a_move_is_normal() -> None:
    step = schedule_of("vp", 10)[3]
    x, x0 = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(4)).unbind(0)
    move = ddim(step, x, x0, 0.8)
    assert isinstance(move, Move)
    normal = torch.distributions.Normal(move.mean, move.std)
    point = x + 0.1
    torch.testing.assert_close(move.log_prob(point), normal.log_prob(point).sum(1))


def test_inversion_and_refusals() -> None:
    step = schedule_of("vp", 10)[5]
    up = Step(0, 1, step.t, step.alpha_next, step.sigma_next, step.alpha, step.sigma, "epsilon")
    x, x0 = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(4)).unbind(0)
    there = ddim(step, x, x0).mean
    torch.testing.assert_close(ddim(up, there, x0).mean, x)
    with pytest.raises(ValueError, match="goes up in noise"):
        ddim(up, there, x0, 0.5)
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        ddim(step, x, x0, 1.5)
