"""Every choice of rho: its closed form, its limits, and how much samples then vary."""

from __future__ import annotations

import math

import pytest
import torch
from flow_law import chain_law, flow_grid, flow_step
from hypothesis import given, strategies as st

from steer.core.ddim import snr_ratio
from steer.core.types import Step
from steer.search.kernels.laws import LAWS, noise_level, vp_time
from steer.search.kernels.rho import Rho


SDE = ["flow-sde", "ddpm", "dance", "rbf", "rbf-vp"]
STEPS = (10, 28, 50, 200)

# The standard deviation of samples over that of the data, in 10, 28, 50 and 200 steps.
EVEN = {
    Rho("ode"): (0.879, 0.955, 0.975, 0.994),
    Rho("flow-sde"): (0.861, 0.947, 0.970, 0.992),
    Rho("ddpm"): (0.805, 0.919, 0.952, 0.987),
    Rho("rbf"): (0.862, 0.948, 0.971, 0.993),
    Rho("dance"): (0.873, 0.951, 0.972, 0.992),
    Rho("euler-ancestral"): (0.815, 0.921, 0.953, 0.988),
    Rho("euler-ancestral", 0.5): (0.848, 0.939, 0.965, 0.991),
    Rho("cps", 0.5): (0.823, 0.885, 0.900, 0.916),
    Rho("cps", 0.7): (0.762, 0.815, 0.829, 0.845),
    Rho("cps", 0.9): (0.681, 0.726, 0.738, 0.753),
    Rho("renoise"): (0.634, 0.674, 0.686, 0.700),
}
SHIFTED = {
    Rho("ode"): (0.617, 0.851, 0.914, 0.978),
    Rho("flow-sde"): (0.604, 0.827, 0.895, 0.971),
    Rho("ddpm"): (0.572, 0.764, 0.840, 0.947),
    Rho("rbf"): (0.609, 0.846, 0.911, 0.977),
    Rho("dance"): (0.613, 0.832, 0.892, 0.964),
    Rho("euler-ancestral"): (0.579, 0.770, 0.843, 0.948),
    Rho("euler-ancestral", 0.5): (0.598, 0.812, 0.880, 0.964),
    Rho("cps", 0.5): (0.594, 0.786, 0.838, 0.895),
    Rho("cps", 0.9): (0.540, 0.653, 0.687, 0.731),
    Rho("renoise"): (0.521, 0.609, 0.638, 0.679),
}


@pytest.mark.parametrize(
    ("kernel", "shift", "std", "ratios"),
    [
        *[(kernel, 1.0, 1.0, ratios) for kernel, ratios in EVEN.items()],
        *[(kernel, 3.0, 0.3, ratios) for kernel, ratios in SHIFTED.items()],
    ],
    ids=str,
)
def test_variation_of_samples(
    kernel: Rho, shift: float, std: float, ratios: tuple[float, ...]
) -> None:
    for count, ratio in zip(STEPS, ratios, strict=True):
        mean, variance = chain_law(kernel, flow_grid(count, shift), 1.0, std)
        assert mean == pytest.approx(1.0)
        assert math.sqrt(variance) / std == pytest.approx(ratio, abs=0.0006)


@pytest.mark.parametrize("name", LAWS)
def test_what_keeps_the_marginals_does_so_in_many_steps(name: str) -> None:
    _, variance = chain_law(Rho(name), flow_grid(2000), 1.0, 1.0)
    assert (math.sqrt(variance) > 0.99) == Rho(name).keeps_marginals


def drawn(name: str, s: float, s_next: float) -> float:
    return LAWS[name].shares(flow_step(s, s_next), LAWS[name].level or 0.0).kept


@pytest.mark.parametrize("name", SDE)
def test_two_steps_of_an_sde_are_one(name: str) -> None:
    whole = drawn(name, 0.8, 0.3)
    assert drawn(name, 0.8, 0.5) * drawn(name, 0.5, 0.3) == pytest.approx(whole, rel=1e-12)
    assert 0 < whole < 1


@pytest.mark.parametrize("name", ["cps", "constant"])
def test_two_steps_of_a_constant_draw_noise_twice(name: str) -> None:
    """Why ever more steps make samples ever more alike."""
    whole = drawn(name, 0.8, 0.3)
    assert drawn(name, 0.8, 0.5) * drawn(name, 0.5, 0.3) == pytest.approx(whole**2)


def test_closed_forms() -> None:
    s, to = 0.7, 0.4
    odds = to * (1 - s) / ((1 - to) * s)
    q = to * (1 + (to / s - 1) * 0.6)
    assert drawn("flow-sde", s, to) == pytest.approx(odds ** (0.7**2 / 2))
    assert drawn("ddpm", s, to) == pytest.approx(odds)
    assert drawn("ddpm", s, to) == pytest.approx(snr_ratio(flow_step(s, to)))
    assert drawn("dance", s, to) == pytest.approx(math.exp(-(0.3**2) / 2 * (1 / to - 1 / s)))
    assert drawn("rbf", s, to) == pytest.approx(math.exp(-1.5 * (s**3 - to**3)))
    ancestral = LAWS["euler-ancestral"].shares(flow_step(s, to), 0.6).kept
    assert ancestral == pytest.approx((1 - to) * q / ((1 - q) * to))
    assert drawn("cps", s, to) == pytest.approx(math.cos(0.8 * math.pi / 2))


def test_ancestral_is_a_flow_sde_for_small_steps() -> None:
    """Euler-ancestral with eta is Flow-SDE with a = sqrt(2 eta)."""
    small, sde = drawn("euler-ancestral", 0.5, 0.48), Rho("flow-sde", math.sqrt(2))
    assert small == pytest.approx(0.926, abs=0.001)
    assert sde.shares(flow_step(0.5, 0.48)).kept == pytest.approx(0.923, abs=0.001)
    assert drawn("euler-ancestral", 0.9, 0.8) == pytest.approx(0.615, abs=0.001)


@pytest.mark.parametrize(
    ("r", "s"),
    [
        *[(1, 0.993), (0.9, 0.983), (0.8, 0.962), (0.7, 0.922), (0.6, 0.859), (0.5, 0.773)],
        *[(0.4, 0.670), (0.3, 0.552), (0.2, 0.419), (0.1, 0.254), (0.05, 0.148)],
    ],
)
def test_the_vp_path_of_rbf(r: float, s: float) -> None:
    total = 19.9 * r * r / 2 + 0.1 * r
    alpha, sigma = math.exp(-total / 2), math.sqrt(-math.expm1(-total))
    assert noise_level(alpha, sigma) == pytest.approx(s, abs=0.0006)
    assert vp_time(alpha, sigma) == pytest.approx(r)
    assert vp_time(1 - s, s) == pytest.approx(r, abs=0.01)  # the same signal-to-noise ratio


def test_the_vp_integral_is_that_of_its_definition() -> None:
    here, there = vp_time(0.3, 0.7), vp_time(0.6, 0.4)
    r = torch.linspace(there, here, 200_001, dtype=torch.float64)
    values = 9 * r**4 / -torch.expm1(-(19.9 * r * r / 2 + 0.1 * r))
    integral = float(torch.trapezoid(values, r)) / 2
    assert drawn("rbf-vp", 0.7, 0.4) == pytest.approx(math.exp(-integral), rel=1e-9)


@given(st.sampled_from([*LAWS]), st.floats(1e-6, 1), st.floats(0, 0.999), st.floats(0, 1))
def test_always_finite_and_adding_up(name: str, s: float, share: float, level: float) -> None:
    kept, fresh = LAWS[name].shares(flow_step(s, s * share), level)
    assert 0 <= kept <= 1 and 0 <= fresh <= 1
    assert kept**2 + fresh**2 == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", SDE)
def test_small_steps_keep_their_digits(name: str) -> None:
    """fresh^2 is about 2 I where rho rounds to 1."""
    one = LAWS[name].shares(flow_step(0.5, 0.5 - 1e-9), LAWS[name].level or 0.0).fresh
    two = LAWS[name].shares(flow_step(0.5, 0.5 - 2e-9), LAWS[name].level or 0.0).fresh
    assert two / one == pytest.approx(math.sqrt(2), rel=1e-3 if name == "ddpm" else 1e-5)


@pytest.mark.parametrize("name", LAWS)
def test_other_grids_have_the_rho_of_their_signal_to_noise_ratio(name: str) -> None:
    """VP and VE points scaled from those of a flow model."""
    flow = flow_step(0.7, 0.4)
    vp, ve = (
        Step(
            1,
            4,
            flow.t,
            flow.alpha / a,
            flow.sigma / a,
            flow.alpha_next / b,
            flow.sigma_next / b,
            "epsilon",
        )
        for a, b in (
            (math.hypot(0.3, 0.7), math.hypot(0.6, 0.4)),
            (0.3, 0.6),
        )
    )
    level = LAWS[name].level or 0.0
    expected = LAWS[name].shares(flow, level)
    assert LAWS[name].shares(vp, level) == pytest.approx(expected)
    assert LAWS[name].shares(ve, level) == pytest.approx(expected)
