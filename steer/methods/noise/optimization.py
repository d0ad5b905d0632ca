"""Gradient ascent of the reward in the initial noise, through a short run of the pipeline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from steer.core.checks import one_of, positive, whole
from steer.core.errors import RewardError
from steer.core.types import Name, Population, Reward, Search, wide
from steer.methods.noise import passes
from steer.methods.noise.ascent import Best, ascent, tell_iterate, within
from steer.rewards.combine.weighted import check_absolute
from steer.rewards.frames import resolve_for
from steer.search.context import Context
from steer.search.sampling import sample_all
from steer.search.short_runs import Asking, judge, probe, pure_noise, run, short_grid, slope


@dataclass(frozen=True)
class NoiseOptimization:
    """Climb the reward in the initial noise, then sample from the best noise found.

    An iteration runs a *short* deterministic sampler, `through` steps of the pipeline's own grid,
    decodes, scores, and differentiates the reward with respect to the noise through all of it. The
    best iterate is then sampled with the user's own solver and all steps; it competes with the
    plain image of its start, so the result is never worse than the start under the reward.

    `variant="sphere"` (default) makes normalised steps on the sphere of the noise's norm, with
    momentum (Riemannian gradient ascent). `variant="reno"` is ReNO (Eyring et al. 2024,
    arXiv:2406.04312): free steps, a regulariser on the norm, gradient clipping, Nesterov momentum.
    `Then(BestOfN(k), NoiseOptimization())` optimises the best of k starts; `starts=k` optimises
    each of k and returns the best (CARINOX, arXiv:2509.17458).

    Many iterations find noise that pleases the reward and nobody else: keep them few, watch a
    `judge`, or give a `monitor`.

    Args:
        iterations: Short runs; all but the last are differentiated.
        through: Steps of the short run; `None` for all, which one-step and few-step models want.
        variant: `"sphere"` or `"reno"`.
        step: As a share of the noise's norm (sphere, default 0.1), or the learning rate (reno,
            default 5).
        momentum: Default 0.7 (sphere), 0.9 (reno).
        starts: Noises to optimise per returned image.
        gradient: `"exact"`; `"zero-order"` for rewards without gradients, estimated from
            `directions` antithetic pairs; `"auto"` is exact where the reward is differentiable.
        directions: Pairs of points per iteration, for the zero-order gradient.
        angle: How far away they are, in degrees.
        finish: `"full"` samples all steps from the best noise; `"short"` returns the short run's
            own image; `"both"` lets the two compete.
        keep_start: Sample the starts as well and keep their images where they are better.
        patience: Stop after so many iterations without a new best; `None` never does.
        max_angle: How many degrees the noise may turn from its start; `None` is no limit.
        monitor: A reward by name or object that decides, in place of the optimised one, which
            iterate is the best one; what it judges is then no longer held out.
        checkpoint: Recompute each denoiser call on the way back, so that the graph of one call is
            held and not of all. `None`: where the short run has more than 4 steps.
        clip, weight: Gradient norm and weight of the regulariser, for reno.

    Raises:
        ValueError: Arguments of the wrong kind.
    """

    iterations: int = 10
    through: int | None = 4
    variant: Literal["sphere", "reno"] = "sphere"
    step: float | None = None
    momentum: float | None = None
    starts: int = 1
    gradient: Literal["exact", "zero-order", "auto"] = "exact"
    directions: int = 4
    angle: float = 5.0
    finish: Literal["full", "short", "both"] = "full"
    keep_start: bool = True
    patience: int | None = None
    max_angle: float | None = None
    monitor: Any = None
    checkpoint: bool | None = None
    clip: float = 0.1
    weight: float = 0.01

    def __post_init__(self) -> None:
        example = "NoiseOptimization(iterations=10, through=4)"
        for name in ("iterations", "starts", "directions"):
            whole(name, getattr(self, name), example)
        for name in ("through", "patience"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), example)
        one_of("variant", self.variant, ("sphere", "reno"))
        one_of("gradient", self.gradient, ("exact", "zero-order", "auto"))
        one_of("finish", self.finish, ("full", "short", "both"))
        positive("step", self.step)
        positive("momentum", self.momentum, 1.0, zero=True)
        positive("angle", self.angle, 90.0)
        positive("max_angle", self.max_angle, 180.0)
        positive("clip", self.clip)
        positive("weight", self.weight, zero=True)

    @classmethod
    def for_compute(cls, compute: float, steps: int) -> NoiseOptimization:
        """As many iterations as `compute` plain calls of `steps` steps pay for.

        Raises:
            ValueError: Not even one iteration fits.
        """
        return cls(iterations=cls().fitting(compute, steps))

    def fitting(self, compute: float, steps: int) -> int:
        """The largest `iterations` with which these settings cost at most `compute` plain calls."""
        return passes.fitting(self, compute, steps, type(self).__name__)

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return (self.starts,)

    def cost(self, steps: int) -> int:
        """Denoiser-row equivalents per returned image; a row differentiated counts as two more."""
        return passes.total(self, steps)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Finish the starts, climb from each, finish the best noises, return the best images."""
        pure_noise(ctx, type(self).__name__)
        check_absolute(ctx.reward, type(self).__name__)
        exact = self._exact(ctx.reward)
        if exact:
            ctx.model.check_resident()
        finished = []
        if self.keep_start and not all(ctx.starts.origin.get(i) in ctx.finals for i in start.ids):
            finished.append((yield from sample_all(ctx, start)))
        found: dict[Name, tuple[Tensor, Tensor]] = {}
        parts = ctx.groups(start)
        with ctx.frozen():
            for number, part in enumerate(parts):
                least = self._least(ctx, len(parts), number)
                best = yield from self._climb(ctx, part, exact, least)
                if best is not None:
                    found |= zip(part.ids, zip(best.x, best.clean, strict=True), strict=True)
        names = [name for name in start.ids if name in found]
        if names:
            finished += yield from self._finish(ctx, start, [found[name] for name in names], names)
        return ctx.winners(Population.join(finished or [(yield from sample_all(ctx, start))]))

    def _finish(
        self, ctx: Context, start: Population, found: list[tuple[Tensor, Tensor]], names: list[Name]
    ) -> Asking[list[Population]]:
        """Images from the best noises, as `finish` says."""
        noise, clean = (torch.stack(rows).to(start.x.dtype) for rows in zip(*found, strict=True))

        def adopted() -> Population:
            copies = ctx.starts.adopt(noise, [prompt for prompt, _ in names])
            ctx.tell_descent("branch", copies.ids, None, names)
            return copies

        images = []
        if self.finish != "short":
            images.append((yield from sample_all(ctx, adopted())))
        if self.finish != "full":
            images.append(adopted().at(clean))
            ctx.evaluate(images[-1])
        return images

    def _least(self, ctx: Context, lanes: int, number: int) -> float:
        """What lane `number` must leave over: the other lanes' share, and the last sampling."""
        left = ctx.left()
        if left == math.inf:
            return -math.inf
        steps = 0 if self.finish == "short" else len(ctx.steps)
        after = lanes * ctx.lane * len(ctx.prompts) * steps
        return left - (left - after) / (lanes - number)

    def _exact(self, reward: Reward) -> bool:
        """Whether gradients are exact; raises where they cannot be."""
        if self.gradient == "exact" and not reward.differentiable:
            raise RewardError(
                f"reward {reward.name!r} is not differentiable (it declares so): use "
                "NoiseOptimization(gradient='zero-order') or NoiseSearch(), or set "
                "differentiable=True on a function through which gradients do flow"
            )
        return self.gradient != "zero-order" and reward.differentiable

    def _climb(
        self, ctx: Context, part: Population, exact: bool, least: float
    ) -> Asking[Best | None]:
        """The best iterate of every row of one lane; `None` where not one could be paid for."""
        grid, dtype = short_grid(ctx.steps, self.through), part.x.dtype
        lane, steps = ctx.lane * len(ctx.prompts), len(ctx.steps)
        monitor = None if self.monitor is None else resolve_for(ctx.model.pipe, self.monitor)
        first = x = wide(part.x)
        scale = math.hypot(ctx.steps[0].alpha, ctx.steps[0].sigma)
        move = ascent(self.variant, self.step, self.momentum, self.clip, self.weight, scale)
        best: Best | None = None
        for number in range(self.iterations):
            spare = ctx.left() - least
            if spare < lane * passes.points(self, steps):
                break
            here, gradient = part.at(x), None
            if number + 1 == self.iterations or spare < lane * passes.one_pass(self, steps):
                clean = yield from run(ctx, here, grid, dtype)
                reward = judge(ctx, here.at(clean), dtype)
            elif exact:
                found = yield from slope(ctx, here, grid, dtype, passes.recomputes(self, len(grid)))
                clean, reward, gradient = found.clean, found.reward, found.gradient
            else:
                turn = math.radians(self.angle)
                around = yield from probe(ctx, here, grid, dtype, self.directions, turn, (number,))
                here, clean = part.at(around.x), around.clean
                reward, gradient = around.reward, around.gradient
            watched = None if monitor is None else judge(ctx, here.at(clean), dtype, monitor)
            best = best or Best.before(x, clean, reward, self.patience)
            best.offer(here.x, clean, reward if watched is None else watched, reward)
            tell_iterate(ctx, part, number, reward, watched, here.x)
            if gradient is None or bool(best.stopped.all()):
                break
            x = within(move(x, gradient), first, self.max_angle)
        return best
