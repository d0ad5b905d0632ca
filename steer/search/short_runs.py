"""A short deterministic run from initial noise to reward, and its exact gradient.

The grid is a part of the pipeline's own, the moves between its points are our DDIM steps, and the
denoiser is the pipeline's, asked through queries. The gradient is the discrete adjoint: stage by
stage backwards, each stage a vector-Jacobian product of one denoiser call, rescaled row by row so
that half precision neither under- nor overflows.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from steer.core.ddim import ddim
from steer.core.errors import UnsupportedPipelineError
from steer.core.rows import per_row
from steer.core.sphere import geodesic, radius, tangent, unit
from steer.core.types import Population, Query, Reward, Step, wide
from steer.search.context import Context
from steer.search.guidance import check_finite, largest, scaled_gradient


T = TypeVar("T")
Asking: TypeAlias = Generator[Query, Tensor, T]
Grid: TypeAlias = tuple[Step, ...]


def short_grid(steps: Sequence[Step], through: int | None) -> Grid:
    """`through` of the steps, evenly spread with the first among them, each leading to the next.

    All of them for `None` or where there are fewer. The last one leads to clean data also where the
    run ends in noise. Steps that do not lower the noise (second-order
    solvers ask twice at one point) are left out.
    """
    falling: list[Step] = []
    for step in steps:
        if not falling or _signal(step) > _signal(falling[-1]):
            falling.append(step)
    count = len(falling) if through is None else min(through, len(falling))
    chosen = [falling[i * len(falling) // count] for i in range(count)]
    ends = [(step.alpha, step.sigma) for step in chosen[1:]]
    last = steps[-1]
    ends.append((1.0, 0.0) if last.ends_in_noise else (last.alpha_next, last.sigma_next))
    return tuple(
        replace(step, alpha_next=alpha, sigma_next=sigma)
        for step, (alpha, sigma) in zip(chosen, ends, strict=True)
    )


def _signal(step: Step) -> float:
    return step.alpha / max(step.sigma, 1e-12)


def pure_noise(ctx: Context, method: str) -> None:
    """Raise UnsupportedPipelineError where the call starts in the middle of its schedule."""
    if ctx.steps.offset:
        raise UnsupportedPipelineError(
            f"{method} changes the initial noise, and this call skips the first "
            f"{ctx.steps.offset} steps of the schedule, so it starts from an image: use BestOfN "
            "or Prune, or strength=1"
        )


def run(ctx: Context, start: Population, grid: Grid, dtype: torch.dtype) -> Asking[Tensor]:
    """Clean latents `(rows, *latent)`, float32 at least, at the end of the short grid.

    Args:
        ctx: Where the denoiser is asked.
        start: Initial latents, float32 at least.
        grid: From `short_grid`.
        dtype: In which the pipeline's latents are; what the denoiser is asked in.
    """
    x = wide(start.x)
    for step in grid:
        output = yield from ctx.denoise(start.at(x.to(dtype)), step)
        x = ddim(step, x, step.x0(x, output)).mean
    return x


def judge(
    ctx: Context, population: Population, dtype: torch.dtype, reward: Reward | None = None
) -> Tensor:
    """Rewards of clean latents `(rows,)`, a lane at a time, with nothing remembered of them."""
    chunk, scores = ctx.piece, []
    for first in range(0, len(population), chunk):
        ids = population.ids[first : first + chunk]
        with torch.no_grad():
            images = ctx.preview(population.x[first : first + chunk].to(dtype))
            scores.append(ctx.score(images, ids, reward))
    return torch.cat(scores)


@dataclass(frozen=True, eq=False)
class Leash:
    """A price on leaving an image: `weight` times the mean squared difference of clean latents.

    Seen through noise of alpha = sigma, two clean latents are Gaussians whose KL is half their
    squared distance. So this is MIRA's penalty KL[p(x0 | z) || p(x0 | z0)] (arXiv:2510.01549) at
    one noise level, per number and up to a factor, and it needs no further denoiser call.

    Attributes:
        weight: In the reward's units: the price of a mean squared difference of 1.
        start: Clean latents at which it is 0, `(rows, *latent)`.
    """

    weight: float
    start: Tensor

    def distance(self, clean: Tensor) -> Tensor:
        """Mean squared differences `(k * rows,)` of clean latents of these rows, k times over."""
        away = clean.unflatten(0, (-1, len(self.start))) - self.start
        return away.square().flatten(2).mean(2).flatten()

    def price(self, clean: Tensor) -> Tensor:
        """What to take off the rewards of clean latents, `(k * rows,)`."""
        return self.weight * self.distance(clean)

    def slope(self, clean: Tensor) -> Tensor:
        """The gradient of the price at clean latents, `(rows, *latent)`."""
        return (2 * self.weight / clean[0].numel()) * (clean - self.start)


@dataclass(frozen=True, eq=False)
class Slope:
    """What a short run came to.

    Attributes:
        reward: `(rows,)`.
        clean: Clean latents that were judged, `(rows, *latent)`.
        gradient: Of the reward with respect to the initial latents, `(rows, *latent)`.
    """

    reward: Tensor
    clean: Tensor
    gradient: Tensor


def slope(
    ctx: Context,
    start: Population,
    grid: Grid,
    dtype: torch.dtype,
    checkpoint: bool,
    leash: Leash | None = None,
) -> Asking[Slope]:
    """Reward and its gradient at `start`, through reward, decoder and every denoiser call.

    Args:
        ctx: Where the denoiser is asked.
        start: Initial latents, float32 at least; at most one lane, so that one lane's graph is all
            that is held.
        grid: From `short_grid`.
        dtype: In which the pipeline's latents are.
        checkpoint: Hold one denoiser call's graph at a time and ask again on the way back, at one
            more row per step but the last.
        leash: Take the gradient of its price off that of the reward.

    Raises:
        GradientError: The gradient is not finite.
        RewardError: The reward's result is cut off from the images.
        UnsupportedPipelineError: The denoiser's output is cut off from the latents.
    """
    x, stages, where = wide(start.x), [], list(grid)
    for step in grid:
        if checkpoint and step is not grid[-1]:
            stages.append((step, x))
            output = yield from ctx.denoise(start.at(x.to(dtype)), step)
            x = ddim(step, x, step.x0(x, output)).mean
        else:
            stages.append((yield from _record_move(ctx, start.at(x), step, dtype)))
            x = stages[-1][1].detach()
    reward, gradient, scale = scaled_gradient(ctx, start.at(x), dtype)
    if leash is not None:
        gradient, scale = gradient * scale - leash.slope(x), torch.ones_like(scale)
    cotangent, scale = _rescale(gradient, scale)
    while stages:
        first, second = stages.pop()
        if isinstance(first, Step):
            first, second = yield from _record_move(ctx, start.at(second), first, dtype)
        with ctx.backward(where.pop(), len(start)):
            (further,) = torch.autograd.grad(second, first, cotangent)
        cotangent, scale = _rescale(further, scale)
    gradient = cotangent * scale
    check_finite(ctx, start, gradient)
    return Slope(reward, x, gradient)


def _record_move(
    ctx: Context, at: Population, step: Step, dtype: torch.dtype
) -> Asking[tuple[Tensor, Tensor]]:
    """One move with its graph: where it starts (a leaf) and where it leads."""
    with torch.enable_grad():
        leaf = at.x.detach().requires_grad_()
        asked = leaf.to(dtype)
    output = yield from ctx.denoise(at.at(asked), step, grad=True)
    if not output.requires_grad:
        raise UnsupportedPipelineError(
            f"{ctx.model.name}: no gradient comes back from its denoiser (compiled for "
            "inference, or quantised?); use gradient='zero-order'"
        )
    with torch.enable_grad():
        return leaf, ddim(step, leaf, step.x0(leaf, output)).mean


def _rescale(gradient: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Rows brought to a largest entry of 1, and what to multiply them by to undo it."""
    size = largest(gradient)
    return gradient / per_row(size, gradient), scale * size.view(scale.shape)


@dataclass(frozen=True, eq=False)
class Probe:
    """What short runs around some points came to.

    Attributes:
        x, clean, reward: The best point asked for every row, its clean latents, and the reward.
        gradient: An estimate of the gradient at the centre, `(rows, *latent)`.
    """

    x: Tensor
    clean: Tensor
    reward: Tensor
    gradient: Tensor


def probe(
    ctx: Context,
    start: Population,
    grid: Grid,
    dtype: torch.dtype,
    directions: int,
    angle: float,
    salt: tuple[int, ...],
    leash: Leash | None = None,
) -> Asking[Probe]:
    """A gradient from rewards alone: antithetic pairs on the sphere around every row.

        grad ~ D / m * sum_j (R(x(+a u_j)) - R(x(-a u_j))) / (2 a |x|) * u_j

    with m random unit tangents u_j, x(a u) the point a radians along u, and D = d - 1 the
    dimension of the sphere, which makes it unbiased as a goes to 0 (evolution strategies with
    antithetic sampling: Salimans et al. 2017, arXiv:1703.03864, here on the sphere).

    Args:
        ctx, start, grid, dtype: As for `slope`.
        directions: Pairs per row.
        angle: How far to look, in radians.
        salt: Tells this call's directions from those of others.
        leash: Its price is taken off the rewards, for the gradient and for which point is best.
    """
    rows, size = len(start), start.x[0].numel() - 1
    ways = [ctx.starts.noise(start.ids, (*salt, j), start.x) for j in range(directions)]
    ways = [unit(tangent(start.x, way)) for way in ways]
    turns = [sign * angle for _ in ways for sign in (1, -1)]
    points = torch.cat([geodesic(start.x, ways[i // 2], turn) for i, turn in enumerate(turns)])
    around = Population(points, start.ids * len(turns))
    clean = yield from run(ctx, around, grid, dtype)
    reward = judge(ctx, around.at(clean), dtype)
    value = reward if leash is None else reward - leash.price(clean)
    reward, value = reward.view(len(turns), rows), value.view(len(turns), rows)
    rise = (value[0::2] - value[1::2]) * (size / (2 * angle * directions))
    gradient = sum(per_row(r, way) * way for r, way in zip(rise, ways, strict=True))
    best = value.argmax(0) * rows + torch.arange(rows, device=reward.device)
    return Probe(points[best], clean[best], reward.flatten()[best], gradient / radius(start.x))
