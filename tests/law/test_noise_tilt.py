"""`NoiseTilt` on data with a power-law spectrum and an exact denoiser, against a shift of x0."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from toy import SCHEDULERS

from steer.core.ddim import ddim
from steer.core.sphere import unit
from steer.core.types import Move, Step
from steer.driver.grid import Schedule
from steer.methods.particles.noise_tilt import tilt_noise


DIM, ROWS = 256, 48
_K = torch.arange(DIM // 2 + 1, dtype=torch.float64)
_COUNT = torch.where((_K == 0) | (2 * _K == DIM), 1.0, 2.0)
SPECTRUM = (1 + _K) ** -2 * (DIM / float(((1 + _K) ** -2 * _COUNT).sum()))
"""Variances by frequency, 1 on average."""

Change = Callable[[Step, Tensor, Tensor, float], Move]


def forward(x: Tensor) -> Tensor:
    return torch.fft.rfft(x, norm="ortho")


def back(spectrum: Tensor) -> Tensor:
    return torch.fft.irfft(spectrum, n=DIM, norm="ortho")


def draws(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64) for _ in range(count)]


NOISE = draws(27)
SMOOTH = back(forward(NOISE[26]) * SPECTRUM.sqrt())[:1]
"""The gradient of a linear reward, itself like data."""


def sample(change: Change, strength: float, gradient: Tensor) -> tuple[float, float]:
    """Reward in units of the gradient's norm, and the mean Mahalanobis square per number."""
    scheduler = SCHEDULERS["ddim"]()
    scheduler.set_timesteps(25)
    x = NOISE[0]
    for step, noise in zip(Schedule.from_scheduler(scheduler), NOISE[1:], strict=False):
        gain = SPECTRUM * step.alpha / (step.alpha**2 * SPECTRUM + step.sigma**2)
        x = change(step, x, back(forward(x) * gain), strength).sample(noise)
    distance = (forward(x).abs() ** 2 * _COUNT / SPECTRUM).sum(1).mean() / DIM
    return float((x @ unit(gradient).T).mean()), float(distance)


def tilted(gradient: Tensor, block: int | None) -> Change:
    def change(step: Step, x: Tensor, x0: Tensor, strength: float) -> Move:
        move = ddim(step, x, x0, 1.0)
        whole = gradient.expand_as(x)
        return tilt_noise(move, whole, strength, block) if move.std else move

    return change


def shifted(gradient: Tensor) -> Change:
    def change(step: Step, x: Tensor, x0: Tensor, strength: float) -> Move:
        return ddim(step, x, x0 + strength * math.sqrt(DIM) * unit(gradient), 1.0)

    return change


def at_drift(change: Change, gradient: Tensor, drift: float) -> float:
    """The reward at the strength that leads to this Mahalanobis square."""
    low, high = 0.0, 0.9
    for _ in range(12):
        middle = (low + high) / 2
        reached = sample(change, middle, gradient)[1] < drift
        low, high = (middle, high) if reached else (low, middle)
    return sample(change, low, gradient)[0]


def test_a_smooth_gradient_in_the_noise_beats_a_shift_and_its_whitening() -> None:
    """At equal drift from the data. (29, 14 and 9 with 64 rows.)"""
    reward, drift = sample(tilted(SMOOTH, None), 0.1, SMOOTH)
    plain, base = sample(tilted(SMOOTH, None), 0.0, SMOOTH)
    assert drift > 1.15 * base
    mean, white = (
        at_drift(change, SMOOTH, drift) for change in (shifted(SMOOTH), tilted(SMOOTH, 8))
    )
    assert reward > 1.5 * mean > 1.5 * 1.3 * white > plain + 3


@pytest.mark.parametrize("block", [None, 64])
def test_the_noise_keeps_its_norm(block: int | None) -> None:
    """E|sqrt(1 - a^2) z + a G|^2 = d, whatever the gradient's length and spectrum."""
    generator = torch.Generator().manual_seed(1)
    z, g = (torch.randn(64, 4, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    smooth = 1e-6 * g.cumsum(-1).cumsum(-2)
    move = tilt_noise(Move(torch.zeros_like(z), 2.0, z), smooth, 0.6, block)
    noise = move.sample(z) / 2.0
    assert float((noise**2).mean()) == pytest.approx(1.0, abs=0.02)
    along = (noise * unit(smooth)).flatten(1).sum(1).mean() / math.sqrt(1024)
    assert float(along) == pytest.approx(0.6, abs=0.02) if block is None else float(along) > 0.1
    unchanged = tilt_noise(move, smooth, 0.0, block)
    assert torch.equal(unchanged.mean, move.mean) and unchanged.std == move.std
