"""Search over paths: noise a little, denoise a little more, keep the best; until the end."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from steer.core.types import Population, Step, wide
from steer.search.context import Context
from steer.search.short_runs import Asking


class Plan(Protocol):
    """What search over paths needs to know; as the arguments of `NoiseSearch`."""

    @property
    def n(self) -> int: ...
    @property
    def rounds(self) -> int: ...
    @property
    def keep(self) -> int: ...
    @property
    def at(self) -> float: ...
    @property
    def back(self) -> int: ...


def bounds(plan: Plan, steps: int) -> list[int]:
    """Where paths stand before the first round and after every one, as indices into the grid.

    Raises:
        ValueError: Fewer steps than the rounds need.
    """
    first = max(math.floor(plan.at * steps + 1e-9), plan.back, 1)
    if steps - first < plan.rounds:
        raise ValueError(
            f"rounds={plan.rounds}, back={plan.back}, at={plan.at}: {plan.rounds} rounds of paths "
            f"need at least {first + plan.rounds} steps, and the call has {steps}; lower rounds or "
            "raise num_inference_steps"
        )
    return [first + (steps - first) * r // plan.rounds for r in range(plan.rounds + 1)]


def path_rows(plan: Plan, steps: int) -> int:
    """Denoiser rows per returned image; a grid too short for the plan counts as just enough."""
    first = max(math.floor(plan.at * steps + 1e-9), plan.back, 1)
    ends = bounds(plan, max(steps, first + plan.rounds))
    return plan.keep * ends[0] + plan.n * (ends[-1] - ends[0] + plan.rounds * plan.back)


def search_paths(ctx: Context, start: Population, plan: Plan) -> Asking[Population]:
    """The winners of a search over paths from `start`, `plan.keep` particles per image."""
    ends = bounds(plan, len(ctx.steps))
    paths, _ = yield from _denoise(ctx, start, 0, ends[0])
    for before, after in pairwise(ends):
        paths = _branch(ctx, paths, before, plan)
        paths, previews = yield from _denoise(ctx, paths, before - plan.back, after)
        if after < len(ctx.steps):
            values = ctx.evaluate(previews, ctx.steps[after - 1])
            rows = sorted(ctx.top(previews, values, plan.keep * ctx.images))
            paths = paths.take(rows)
    return ctx.winners(paths)


def _denoise(
    ctx: Context, paths: Population, first: int, end: int
) -> Asking[tuple[Population, Population]]:
    """From point `first` to point `end` of the grid, and the x0 previews of the last step."""
    solver, previews = ctx.solver(paths), paths
    for step in ctx.steps[first:end]:
        output = yield from ctx.denoise(paths, step)
        if step.index == end - 1:
            previews = paths.at(step.x0(paths.x, output))
        paths = paths.at(solver.step(step, paths.x, output, paths.ids))
    return paths, previews


def _branch(ctx: Context, paths: Population, at: int, plan: Plan) -> Population:
    """Every path several times, noised again from point `at`, `plan.back` steps up."""
    rows = [row for row in range(len(paths)) for _ in range(plan.n // plan.keep)]
    parents = paths.take(rows)
    names = ctx.starts.names([prompt for prompt, _ in parents.ids])
    noise = ctx.starts.noise(names, (at,), paths.x)
    ctx.tell_descent("select", names, ctx.steps[at - 1], parents.ids)
    x = add_noise(parents.x, ctx.steps[at], ctx.steps[at - plan.back], noise)
    return Population(x, names)


def add_noise(x: Tensor, here: Step, there: Step, noise: Tensor) -> Tensor:
    """Latents at one point of the grid taken up to a noisier one by the forward process.

    With a = alpha' / alpha: x' = a x + sqrt(sigma'^2 - a^2 sigma^2) noise, so that the clean sample
    enters with alpha' and the noise adds up to sigma'.
    """
    ratio = there.alpha / max(here.alpha, 1e-12)
    fresh = math.sqrt(max(0.0, there.sigma**2 - (ratio * here.sigma) ** 2))
    return (ratio * wide(x) + fresh * noise).to(x.dtype)
