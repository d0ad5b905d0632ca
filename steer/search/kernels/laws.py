"""How much noise stays in one step: the published stochastic samplers, each as one number rho.

A step goes from noise level s to s' < s, with s = sigma / (alpha + sigma), which is sigma itself
on flow models. With the clean prediction frozen over the step, the reverse SDE with noise g(s)
solves to `steer.core.transition` with

    rho(s, s') = exp(-I),    I = 1/2 integral of g(t)^2 / t^2 dt from s' to s

on a flow model's coordinates; on other grids the same rho holds for the same signal-to-noise
ratio. Both weights of a step, rho and sqrt(1 - rho^2), are computed from I, so neither loses digits
where the other is near 1, and both are finite from pure noise (I infinite) to clean data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from steer.core.ddim import shares as ddim_shares
from steer.core.types import Step


_VP = (0.1, 20.0)  # smallest and largest beta of the VP path that RBF converts flow models to
_NODES = np.polynomial.legendre.leggauss(24)


class Shares(NamedTuple):
    """What the noise of the next point is made of; the squares add up to 1."""

    kept: float
    fresh: float


KEEP = Shares(1.0, 0.0)
"""The deterministic step."""


@dataclass(frozen=True)
class Law:
    """One published choice of rho.

    Attributes:
        shares: `(step, level)` to the weights of the old and the fresh noise.
        level: Its strength where none is given; `None` where it has no strength.
        most: The largest strength; the smallest is 0.
        meaning: What the strength is, for errors.
        keeps_marginals: Whether ever more steps lead to the model's own distribution.
        everywhere: Noise also in a step from pure noise, and in the last one.
    """

    shares: Callable[[Step, float], Shares]
    level: float | None = None
    most: float = math.inf
    meaning: str = ""
    keeps_marginals: bool = True
    everywhere: bool = False


def noise_level(alpha: float, sigma: float) -> float:
    """s = sigma / (alpha + sigma), in [0, 1]: sigma on flow models, one measure for all grids."""
    return sigma / (alpha + sigma)


def vp_time(alpha: float, sigma: float) -> float:
    """The time r of the VP path with this signal-to-noise ratio; 1 at s = 0.993, infinite at 1.

    alpha_r = exp(-T/2), sigma_r = sqrt(1 - exp(-T)), T = (B - b) r^2 / 2 + b r with b = 0.1 and
    B = 20 (Kim et al. 2025, RBF, arXiv:2503.19385).
    """
    if alpha == 0:
        return math.inf
    least, most = _VP
    total = math.log1p((sigma / alpha) ** 2)
    return 2 * total / (least + math.sqrt(least**2 + 2 * (most - least) * total))


def _decayed(integral: float) -> Shares:
    """rho = exp(-I), and sqrt(1 - rho^2)."""
    integral = max(0.0, integral)
    return Shares(math.exp(-integral), math.sqrt(-math.expm1(-2 * integral)))


def _odds(alpha: float, sigma: float) -> float:
    """log(s / (1 - s))."""
    if alpha == 0 or sigma == 0:
        return math.inf if sigma else -math.inf
    return math.log(sigma) - math.log(alpha)


def _flow_sde(step: Step, level: float) -> Shares:
    """g = a sqrt(s / (1 - s)): rho = (s' (1 - s) / ((1 - s') s))^(a^2 / 2)."""
    if level == 0:
        return KEEP
    fall = _odds(step.alpha, step.sigma) - _odds(step.alpha_next, step.sigma_next)
    return _decayed(level**2 / 2 * fall)


def _ddpm(step: Step, level: float) -> Shares:
    """The DDPM posterior: rho = s' (1 - s) / ((1 - s') s)."""
    return Shares(*ddim_shares(step, 1.0))


def _ddim(step: Step, level: float) -> Shares:
    """rho^2 = 1 - eta^2 (1 - r^2), r the DDPM posterior's rho."""
    return Shares(*ddim_shares(step, level))


def _dance(step: Step, level: float) -> Shares:
    """g = eta: rho = exp(-eta^2 / 2 (1/s' - 1/s))."""
    if level == 0:
        return KEEP
    if step.sigma_next == 0:
        return _decayed(math.inf)
    rise = step.alpha_next / step.sigma_next - step.alpha / step.sigma  # of 1/s
    return _decayed(level**2 / 2 * rise)


def _rbf(step: Step, level: float) -> Shares:
    """g = c s^2: rho = exp(-c^2 / 6 (s^3 - s'^3))."""
    here = noise_level(step.alpha, step.sigma)
    there = noise_level(step.alpha_next, step.sigma_next)
    fall = (here - there) * (here * here + here * there + there * there)
    return _decayed(level**2 / 6 * fall)


def _rbf_vp(step: Step, level: float) -> Shares:
    """g = c r^2 in the time r of the VP path: I = c^2 / 2 integral of r^4 / sigma_r^2 dr."""
    here = vp_time(step.alpha, step.sigma)
    there = vp_time(step.alpha_next, step.sigma_next)
    if level == 0 or here <= there:
        return KEEP
    if here == math.inf:
        return _decayed(math.inf)
    least, most = _VP
    r = there + (here - there) * (1 + _NODES[0]) / 2
    values = r**4 / -np.expm1(-((most - least) * r * r / 2 + least * r))
    return _decayed(level**2 / 2 * (here - there) / 2 * float(_NODES[1] @ values))


def _euler_ancestral(step: Step, level: float) -> Shares:
    """rho = (1 - s') q / ((1 - q) s') with q = s' (1 + (s'/s - 1) eta): down to q, then up."""
    there = noise_level(step.alpha_next, step.sigma_next)
    fall = 1 - there / noise_level(step.alpha, step.sigma)
    left = (1 - there) + there * level * fall  # 1 - q
    lost = level * fall / left  # 1 - rho
    return Shares(1 - lost, math.sqrt(max(0.0, lost * (2 - lost))))


def _cps(step: Step, level: float) -> Shares:
    """rho = cos(eta pi / 2), the same at every step."""
    return Shares(math.cos(level * math.pi / 2), math.sin(level * math.pi / 2))


def _constant(step: Step, level: float) -> Shares:
    return Shares(level, math.sqrt((1 - level) * (1 + level)))


LAWS: dict[str, Law] = {
    "ode": Law(lambda step, level: KEEP),
    "flow-sde": Law(_flow_sde, 0.7, meaning="a of g = a sqrt(s / (1 - s))"),
    "ddpm": Law(_ddpm),
    "ddim": Law(_ddim, 1.0, 1.0, "eta, the share of the DDPM posterior's noise", everywhere=True),
    "dance": Law(_dance, 0.3, meaning="eta of g = eta"),
    "rbf": Law(_rbf, 3.0, meaning="c of g = c s^2"),
    "rbf-vp": Law(_rbf_vp, 3.0, meaning="c of g = c r^2 in VP time r"),
    "euler-ancestral": Law(_euler_ancestral, 1.0, 1.0, "eta, how far down the step goes"),
    "cps": Law(_cps, 0.8, 1.0, "eta of rho = cos(eta pi / 2)", keeps_marginals=False),
    "constant": Law(_constant, 0.4, 1.0, "rho itself", keeps_marginals=False),
    "renoise": Law(lambda step, level: Shares(0.0, 1.0), keeps_marginals=False),
}
"""Every choice of rho that has a name, with its usual strength."""
