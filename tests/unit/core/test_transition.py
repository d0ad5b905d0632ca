"""The stochastic transition: its law on Gaussian data, its limits, and the way back up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st

from steer.core.ddim import ddim, snr_ratio
from steer.core.transition import renoise, transition
from steer.core.types import Step


def step(s: float, s_next: float) -> Step:
    """A step of a flow grid."""
    return Step(1, 4, torch.tensor(1000 * s), 1 - s, s, 1 - s_next, s_next, "flow")


@given(st.floats(0.05, 1), st.floats(0, 0.95), st.floats(0, 1))
def test_mean_and_std_of_an_affine_step(s: float, share: float, rho: float) -> None:
    s_next = s * share
    clean, noise = torch.randn(2, 1, 4, 5, dtype=torch.float64)
    here = step(s, s_next)
    move = transition(here, here.alpha * clean + s * noise, clean, rho)
    mean = (1 - s_next) * clean + s_next * rho * noise
    assert torch.allclose(move.mean, mean, atol=1e-6)
    assert move.std == pytest.approx(s_next * math.sqrt(1 - rho**2), abs=1e-9)


@given(st.floats(0.05, 1), st.floats(0, 0.95), st.floats(0, 1))
def test_ddim_is_one_choice_of_rho(s: float, share: float, eta: float) -> None:
    here = step(s, s * share)
    x, clean = torch.randn(2, 1, 4, 5, dtype=torch.float64)
    rho = math.sqrt(1 - eta**2 * (1 - snr_ratio(here) ** 2))
    one, two = transition(here, x, clean, rho), ddim(here, x, clean, eta)
    assert torch.allclose(one.mean, two.mean, atol=1e-9)
    assert one.std == pytest.approx(two.std, abs=1e-7)


def test_on_gaussian_data_the_law_is_the_recursion() -> None:
    """One step from N(mu, v) under data N(m, s0^2), whose denoiser is exact and affine."""
    s, s_next, rho, m, s0 = 0.6, 0.35, 0.7, 1.0, 0.5
    here = step(s, s_next)
    generator = torch.Generator().manual_seed(0)
    total = (here.alpha * s0) ** 2 + s**2
    x = here.alpha * m + math.sqrt(total) * torch.randn(200_000, 1, generator=generator)
    gain = here.alpha * s0**2 / total
    clean = m + gain * (x - here.alpha * m)
    move = transition(here, x, clean, rho)
    found = move.sample(torch.randn(x.shape, generator=generator))
    slope = here.alpha_next * gain + s_next * rho * (1 - here.alpha * gain) / s
    variance = slope**2 * total + s_next**2 * (1 - rho**2)
    assert found.mean().item() == pytest.approx(here.alpha_next * m, abs=3 * variance**0.5 / 447)
    assert found.var().item() == pytest.approx(variance, rel=0.01)


def test_renoise_keeps_the_marginals() -> None:
    m, s0, s, s_up = 1.0, 0.4, 0.3, 0.8
    generator = torch.Generator().manual_seed(0)
    x = (1 - s) * m + math.sqrt(((1 - s) * s0) ** 2 + s**2) * torch.randn(
        200_000, 1, generator=generator
    )
    found = renoise(x, (1 - s, s), (1 - s_up, s_up)).sample(
        torch.randn(x.shape, generator=generator)
    )
    variance = ((1 - s_up) * s0) ** 2 + s_up**2
    assert found.mean().item() == pytest.approx((1 - s_up) * m, abs=0.006)
    assert found.var().item() == pytest.approx(variance, rel=0.01)


def test_what_has_no_meaning_is_refused() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"rho=1\.5"):
        transition(step(0.5, 0.4), x, x, 1.5)
    with pytest.raises(ValueError, match="noisier"):
        renoise(x, (0.5, 0.5), (0.8, 0.2))
    with pytest.raises(ValueError, match="pure noise"):
        renoise(x, (0.0, 1.0), (0.2, 0.8))
    assert torch.equal(renoise(x, (0.0, 1.0), (0.0, 1.0)).mean, x)
