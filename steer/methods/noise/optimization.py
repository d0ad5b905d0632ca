"""Gradient ascent of the reward in the initial noise, through a short run of the pipeline."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from steer.core.checks import one_of, positive, whole
from steer.core.costs import ROWS, Costs, Work, check_costs
from steer.core.errors import RewardError
from steer.core.types import Name, Population, Reward, Search, wide
from steer.methods.noise import passes
from steer.methods.noise.ascent import Best, Iterate, ReNO, Sphere, ZeroOrder, tell_iterate
from steer.rewards.parts import check_absolute
from steer.rewards.registry import resolve
from steer.search.context import Context
from steer.search.method import Method
from steer.search.sampling import sample_all
from steer.search.short_runs import (
    Asking,
    Leash,
    judge,
    probe,
    pure_noise,
    run,
    short_grid,
    slope,
)


_USUAL = Sphere()


@dataclass(frozen=True)
class NoiseOptimization(Method):
    """Climb the reward in the initial noise, then sample from the best noise found.

    An iteration runs a *short* deterministic sampler, `through` steps of the pipeline's own grid,
    decodes, scores, and differentiates the reward with respect to the noise through all of it. The
    best iterate is then sampled with the user's own solver and all steps; it competes with the
    plain image of its start, so the result is never worse than the start under the reward.

    `ascent=Sphere()` (default) makes normalised steps on the sphere of the noise's norm, with
    momentum (Riemannian gradient ascent). `ascent=ReNO()` is ReNO (Eyring et al. 2024,
    arXiv:2406.04312): free steps, a regulariser on the norm, gradient clipping, Nesterov momentum.
    `Then(BestOfN(k), NoiseOptimization())` optimises the best of k starts; `starts=k` optimises
    each of k and returns the best (CARINOX, arXiv:2509.17458).

    Many iterations find noise that pleases the reward and nobody else: keep them few, watch a
    `judge`, give a `monitor` or a `leash`, or keep the noise white (`Sphere(block=64)`).

    Args:
        iterations: Short runs; all but the last are differentiated.
        through: Steps of the short run; `None` for all, which one-step and few-step models want.
        ascent: How a gradient moves the noise: `Sphere(...)` or `ReNO(...)`.
        starts: Noises to optimise per returned image.
        gradient: `"exact"`; `"zero-order"` or `ZeroOrder(...)` for rewards without gradients;
            `"auto"` is exact where the reward is differentiable.
        finish: `"full"` samples all steps from the best noise; `"short"` returns the short run's
            own image; `"both"` lets the two compete.
        keep_start: Sample the starts as well and keep their images where they are better.
        patience: Stop after so many iterations without a new best; `None` never does.
        monitor: A reward by name or object that decides, in place of the optimised one, which
            iterate is the best one; what it judges is then no longer held out.
        checkpoint: Recompute each denoiser call on the way back, so that the graph of one call is
            held and not of all. `None`: where the short run has more than 4 steps.
        leash: What a mean squared difference of 1 from the start's clean latents costs, in the
            reward's units: iterates climb, and are chosen by, the reward less this price
            (`steer.search.short_runs.Leash`). Clean latents have a variance of about 1, so two
            unrelated images are about 2 apart. At one more short run. `None` is no leash.

    Raises:
        ValueError: Arguments of the wrong kind.
    """

    iterations: int = 10
    through: int | None = 4
    ascent: Sphere | ReNO = _USUAL
    starts: int = 1
    gradient: Literal["exact", "zero-order", "auto"] | ZeroOrder = "exact"
    finish: Literal["full", "short", "both"] = "full"
    keep_start: bool = True
    patience: int | None = None
    monitor: Any = None
    checkpoint: bool | None = None
    leash: float | None = None

    def __post_init__(self) -> None:
        example = "NoiseOptimization(iterations=10, through=4)"
        for name in ("iterations", "starts"):
            whole(name, getattr(self, name), example)
        for name in ("through", "patience"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), example)
        if not isinstance(self.ascent, Sphere | ReNO):
            raise ValueError(f"ascent={self.ascent!r}: must be Sphere(...) or ReNO(...)")
        if not isinstance(self.gradient, ZeroOrder):
            one_of("gradient", self.gradient, ("exact", "zero-order", "auto"))
        one_of("finish", self.finish, ("full", "short", "both"))
        positive("leash", self.leash)
        if self.leash is not None and self.monitor is not None:
            raise ValueError(
                f"leash={self.leash!r} with monitor={self.monitor!r}: the monitor chooses the "
                "iterate in place of the leashed reward; give one of them"
            )

    @classmethod
    def for_compute(cls, compute: float, steps: int, costs: Costs = ROWS) -> NoiseOptimization:
        """As many iterations as `compute` plain calls of `steps` steps pay for.

        `costs` says what a row, a decode, a score cost; by default rows alone count.

        Raises:
            ValueError: Not even one iteration fits.
        """
        return cls(iterations=cls().iterations_for(compute, steps, costs))

    def iterations_for(self, compute: float, steps: int, costs: Costs = ROWS) -> int:
        """The largest `iterations` with which these settings cost at most `compute` plain calls.

        Raises:
            ValueError: Not even one iteration fits; the message says what it costs.
        """
        positive("compute", compute, none=False)
        check_costs(costs)

        def work(iterations: int) -> Work:
            return replace(self, iterations=iterations).work(steps)

        if not costs.fits(work(1), compute, steps):
            raise ValueError(
                f"compute={compute!r}: one iteration of {type(self).__name__} costs "
                f"{costs.calls(work(1), steps):.3g} plain calls; raise compute"
            )
        return costs.most(work, compute, steps)

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return (self.starts,)

    def cost(self, steps: int) -> int:
        """Denoiser-row equivalents per returned image; a row differentiated counts as two more."""
        return self.work(steps).equivalent_rows

    def work(self, steps: int) -> Work:
        """All iterations, the start's own image, and the best noise's."""
        return passes.total(self, steps)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Finish the starts, climb from each, finish the best noises, return the best images."""
        pure_noise(ctx, type(self).__name__)
        check_absolute(ctx.reward, type(self).__name__)
        exact = self._exact(ctx.reward)
        if exact:
            ctx.model.check_resident()
        images = []
        if self.keep_start and not all(ctx.starts.origin.get(i) in ctx.finals for i in start.ids):
            images.append((yield from sample_all(ctx, start)))
        found: dict[Name, tuple[Tensor, Tensor]] = {}
        parts = ctx.groups(start)
        with ctx.model.frozen():
            for number, part in enumerate(parts):
                reserve = self._reserve(ctx, len(parts), number)
                best = yield from self._climb(ctx, part, exact, reserve)
                if best is not None:
                    found |= zip(part.ids, zip(best.x, best.clean, strict=True), strict=True)
        names = [name for name in start.ids if name in found]
        if names:
            images += yield from self._finish(ctx, start, [found[name] for name in names], names)
        return ctx.winners(Population.join(images or [(yield from sample_all(ctx, start))]))

    def _exact(self, reward: Reward) -> bool:
        """Whether gradients are exact; raises where they cannot be."""
        if self.gradient == "exact" and not reward.differentiable:
            raise RewardError(
                f"reward {reward.name!r} is not differentiable (it declares so): use "
                "NoiseOptimization(gradient='zero-order') or NoiseSearch(), or set "
                "differentiable=True on a function through which gradients do flow"
            )
        return self.gradient in ("exact", "auto") and reward.differentiable

    def _reserve(self, ctx: Context, lanes: int, number: int) -> float:
        """Denoiser rows that must be left when lane `number` has climbed.

        Enough to sample the best noise of every lane, and for the lanes that follow as much to
        climb with as this one has.
        """
        left = ctx.left()
        if left == math.inf:
            return -math.inf
        steps = 0 if self.finish == "short" else len(ctx.steps)
        sampling = lanes * ctx.batch * len(ctx.prompts) * steps
        return left - (left - sampling) / (lanes - number)

    def _resolve_monitor(self, ctx: Context) -> Reward | None:
        """The monitor on the pipeline's device, fit for what it makes."""
        if self.monitor is None:
            return None
        return resolve(self.monitor, ctx.model.device, videos=ctx.model.videos)

    def _climb(
        self, ctx: Context, part: Population, exact: bool, reserve: float
    ) -> Asking[Best | None]:
        """The best iterate of every row of one lane; `None` where not one could be paid for."""
        lane, steps = ctx.batch * len(ctx.prompts), len(ctx.steps)
        monitor = self._resolve_monitor(ctx)
        scale = math.hypot(ctx.steps[0].alpha, ctx.steps[0].sigma)
        first, dtype = wide(part.x), part.x.dtype
        x, velocity, best = first, None, None
        leash = yield from self._fasten(ctx, part, reserve)
        for number in range(self.iterations):
            spare = ctx.left() - reserve
            if spare < lane * passes.points(self, steps):
                break
            last = (
                number + 1 == self.iterations
                or spare < lane * passes.one_pass(self, steps).equivalent_rows
            )
            found = yield from self._iterate(
                ctx, part.at(x), dtype, exact, None if last else number, leash
            )
            watched = None
            if monitor is not None:
                watched = judge(ctx, part.at(found.clean), dtype, monitor)
            best = best or Best.before(x, found.clean, found.reward, self.patience)
            value = found.reward if watched is None else watched
            if leash is not None:
                value = value - leash.price(found.clean)
            best.offer(found.x, found.clean, value, found.reward)
            tell_iterate(ctx, part, number, found, watched, leash)
            if found.gradient is None or bool(best.stopped.all()):
                break
            x, velocity = self.ascent.move(x, found.gradient, velocity, first, scale)
        return best

    def _fasten(self, ctx: Context, part: Population, reserve: float) -> Asking[Leash | None]:
        """The leash to the starts' clean latents; none where only the starts can be paid for."""
        run_rows = ctx.batch * len(ctx.prompts) * passes.points(self, len(ctx.steps))
        if self.leash is None or ctx.left() - reserve < 2 * run_rows:
            return None
        grid = short_grid(ctx.steps, self.through)
        return Leash(self.leash, (yield from run(ctx, part, grid, part.x.dtype)))

    def _iterate(
        self,
        ctx: Context,
        here: Population,
        dtype: torch.dtype,
        exact: bool,
        number: int | None,
        leash: Leash | None,
    ) -> Asking[Iterate]:
        """A short run from `here`, with a gradient unless `number` is None."""
        grid = short_grid(ctx.steps, self.through)
        if number is None:
            clean = yield from run(ctx, here, grid, dtype)
            return Iterate(here.x, clean, judge(ctx, here.at(clean), dtype))
        if exact:
            again = passes.recomputes(self, len(grid))
            up = yield from slope(ctx, here, grid, dtype, again, leash)
            return Iterate(here.x, up.clean, up.reward, up.gradient)
        probes = passes.probes(self)
        turn = math.radians(probes.angle)
        best = yield from probe(ctx, here, grid, dtype, probes.directions, turn, (number,), leash)
        return Iterate(best.x, best.clean, best.reward, best.gradient)

    def _finish(
        self, ctx: Context, start: Population, found: list[tuple[Tensor, Tensor]], names: list[Name]
    ) -> Asking[list[Population]]:
        """Images from the best noises, as `finish` says."""
        noise, clean = (torch.stack(rows).to(start.x.dtype) for rows in zip(*found, strict=True))

        def adopt() -> Population:
            copies = ctx.starts.adopt(noise, [prompt for prompt, _ in names])
            ctx.tell_descent("branch", copies.ids, None, names)
            return copies

        images = []
        if self.finish != "short":
            images.append((yield from sample_all(ctx, adopt())))
        if self.finish != "full":
            images.append(adopt().at(clean))
            ctx.evaluate(images[-1])
        return images
