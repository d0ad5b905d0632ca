"""GLASS: a transition sampled by a short flow of its own, with several denoiser calls in a step.

The next point is x' = gamma x + y with gamma = rho sigma' / sigma, where given the clean sample
y = a x0 + b e, a = alpha' - gamma alpha, b = sigma' sqrt(1 - rho^2), and its noise e has nothing
to do with that of x. So y is sampled by an inner flow on u in [0, 1], from y = z to a x0 + b e:

    y_u = a u x0 + b_u e,   b_u = 1 - u + u b
    dy/du = (b_u' / b_u) y + (a - a u b_u' / b_u) E[x0 | x, y]

x and y are two independent views of x0, and together as good as one at a lower noise level, which
the denoiser can be asked at: the mean of both, weighted by their signal-to-noise ratios
(Holderrieth et al. 2025, GLASS flows, arXiv:2509.25170, with the mean of x taken out).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from steer.core.types import Move, Population, Query, Step, wide
from steer.search.context import Context
from steer.search.kernels.laws import Shares


@dataclass(frozen=True)
class Stage:
    """One Euler step of the inner flow, in numbers.

    Attributes:
        of_x, of_y: Weights of x and y in the latents that the denoiser is asked at.
        sigma: Their noise level, on the flow model's path.
        pull, push: dy/du = pull y + push x0.
    """

    of_x: float
    of_y: float
    sigma: float
    pull: float
    push: float

    @classmethod
    def at(cls, step: Step, shares: Shares, u: float) -> Stage:
        """The flow at `u` in [0, 1)."""
        a, b = _ends(step, shares)
        spread = 1 - u + u * b
        of_x, of_y = step.alpha / step.sigma**2, a * u / spread**2
        precision = step.alpha * of_x + a * u * of_y  # 1 / variance of x0 given both
        alpha = math.sqrt(precision) / (1 + math.sqrt(precision))
        scale = alpha / precision if precision else 0.0
        pull = (b - 1) / spread
        return cls(scale * of_x, scale * of_y, 1 - alpha, pull, a - a * u * pull)


def _ends(step: Step, shares: Shares) -> tuple[float, float]:
    """What of x0 and of fresh noise is in y at the end."""
    gamma = step.sigma_next * shares.kept / step.sigma
    return step.alpha_next - gamma * step.alpha, step.sigma_next * shares.fresh


def inner_flow(
    ctx: Context, step: Step, shares: Shares, here: Population, output: Tensor, calls: int
) -> Generator[Query, Tensor, Move]:
    """The step in `calls` denoiser calls, the first of which has been made.

    Args:
        ctx: Where the denoiser is asked, and whose generators draw the noise of every row.
        step: A step of a flow model.
        shares: rho, and sqrt(1 - rho^2).
        here: Latents at `step`.
        output: The denoiser's output there.
        calls: In all, at least 1; with 1 it is the step of `steer.core.transition`.

    Returns:
        The next points as a move without noise: theirs is drawn at the beginning, not at the end.
    """
    x, x0 = wide(here.x), wide(step.x0(here.x, output))
    clean, y = x0, ctx.starts.noise(here.ids, (step.index,), here.x)
    for number in range(calls):
        stage = Stage.at(step, shares, number / calls)
        if number:
            asked = (stage.of_x * x + stage.of_y * y).to(here.x.dtype)
            between = _between(ctx.steps, step, stage.sigma)
            answer = yield from ctx.denoise(here.at(asked), between)
            clean = wide(between.x0(asked, answer))
        y = y + (stage.pull * y + stage.push * clean) / calls
    gamma = step.sigma_next * shares.kept / step.sigma
    return Move((gamma * x + y).to(here.x.dtype), 0.0, x0.to(here.x.dtype))


def _between(steps: Sequence[Step], step: Step, sigma: float) -> Step:
    """`step` at a noise level between those of the schedule, with its timestep read off them."""
    times = {0.0: 0.0, **{here.sigma: float(here.t) for here in steps}}
    levels = sorted(times)
    t = float(np.interp(sigma, levels, [times[level] for level in levels]))
    t = t if step.t.is_floating_point() else round(t)
    return replace(step, t=torch.as_tensor(t).to(step.t), alpha=1 - sigma, sigma=sigma)
