"""Flow grids by hand, and the exact law of a kernel's chain on Gaussian data N(mean, std^2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steer.core.types import Step
from steer.search.kernels.rho import Rho


def flow_step(s: float, s_next: float, index: int = 1, count: int = 4) -> Step:
    """A step of a flow model, in the middle of a run."""
    t = torch.tensor(1000.0 * s)
    return Step(index, count, t, 1 - s, s, 1 - s_next, s_next, "flow")


def flow_grid(count: int, shift: float = 1.0) -> list[Step]:
    """Evenly spaced noise levels from 1 to 0, shifted."""
    levels = [1 - i / count for i in range(count + 1)]
    levels = [shift * s / (1 + (shift - 1) * s) for s in levels]
    return [flow_step(levels[i], levels[i + 1], i, count) for i in range(count)]


def move_of(kernel: Rho, step: Step, std: float) -> tuple[float, float, float]:
    """(slope, shift per unit of the data's mean, fresh std) of a step under the exact denoiser."""
    total = (step.alpha * std) ** 2 + step.sigma**2
    gain = step.alpha * std**2 / total
    kept, fresh = kernel.shares(step)
    old = step.sigma_next * kept / step.sigma
    slope = step.alpha_next * gain + old * (1 - step.alpha * gain)
    shift = (step.alpha_next - old * step.alpha) * (1 - step.alpha * gain)
    return slope, shift, step.sigma_next * fresh


def chain_law(kernel: Rho, steps: Sequence[Step], mean: float, std: float) -> tuple[float, float]:
    """Mean and variance of the samples, from N(0, 1) at the first step."""
    at, variance = 0.0, 1.0
    for step in steps:
        slope, shift, fresh = move_of(kernel, step, std)
        at, variance = slope * at + shift * mean, slope**2 * variance + fresh**2
    return at, variance
