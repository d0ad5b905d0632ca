"""Pilot runs: particles of which none is dropped, with the scores of their previews and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from steer.core.costs import Costs
from steer.core.errors import RewardError
from steer.core.types import Population, Reward, Search, Step
from steer.driver.decoding.nan import nan_rows
from steer.methods.guidance.guide import Guide
from steer.methods.selection.best_of_n import BestOfN
from steer.methods.selection.prune import Prune
from steer.pipeline.planning.kinds import Kind
from steer.search.context import Context
from steer.search.method import Method
from steer.search.short_runs import run, short_grid


EVENT = "pilots"
"""Under which a trace has what pilots came to."""


@dataclass(frozen=True)
class StepPilots(Prune):
    """`start` particles in every step (or after strides up to the first of `looks`), none dropped.

    Args:
        looks: Steps whose previews are scored.
        judge: A held-out reward of the finished images.
        start, keep, at, strides: See `Prune`; nothing is kept back.
    """

    looks: tuple[int, ...] = ()
    judge: Reward | None = None

    def walk(self, ctx: Context, alive: Population, steps: Sequence[Step]) -> Search:
        """The last `steps` of the call's, watched."""
        solver, previews = ctx.solver(alive), []
        for step in steps:
            output = yield from ctx.denoise(alive, step)
            if step.index in self.looks:
                seen = alive.at(step.x0(alive.x, output))
                previews.append(ctx.evaluate(seen, step).tolist())
            alive = alive.at(solver.step(step, alive.x, output, alive.ids))
        return tell(ctx, alive, self.judge, previews)


@dataclass(frozen=True)
class ShortPilots(BestOfN):
    """`n` short runs of `strides` denoiser calls to the end; see `BestOfN`.

    Args:
        judge: A held-out reward of their images.
    """

    judge: Reward | None = None

    def __call__(self, ctx: Context, start: Population) -> Search:
        """A lane at a time."""
        grid, done = short_grid(ctx.steps, self.strides), []
        for part in ctx.groups(start):
            latents = yield from run(ctx, part, grid, part.x.dtype)
            done.append(part.at(latents.to(part.x.dtype)))
        return tell(ctx, Population.join(done), self.judge, [])


def pilot_method(kind: Kind, n: int, judge: Reward | None) -> Method:
    """What samples `n` pilots of a kind."""
    if kind.strides is not None and not kind.looks:
        return ShortPilots(n, kind.strides, judge=judge)
    if kind.strides is None:
        pilots = StepPilots(n, (), (), looks=kind.looks, judge=judge)
    else:
        pilots = StepPilots(n, (n,), kind.at[:1], kind.strides, looks=kind.looks, judge=judge)
    return pilots if kind.when is None else Guide(pilots, when=kind.when)


def tell(
    ctx: Context, done: Population, judge: Reward | None, previews: list[list[float]]
) -> Population:
    """Score finished pilots, note all that is known of them, and return the best.

    An image with NaN pixels counts as the worst of its prompt.

    Raises:
        RewardError: All images are NaN.
    """
    rewards: list[float | None] = []
    judged: list[float | None] = []
    for first in range(0, len(done), ctx.piece):
        part = done.take(range(first, min(first + ctx.piece, len(done))))
        with torch.no_grad():
            images = ctx.show(part)
            whole = [row for row, nan in enumerate(nan_rows(images)) if not nan]
            rewards += _spread(ctx, images, part, whole, None)
            judged += _spread(ctx, images, part, whole, judge) if judge is not None else []
    if all(reward is None for reward in rewards):
        raise RewardError(
            f"all {len(done)} pilot images of {ctx.prompts[0]!r} have NaN pixels: run the pipeline "
            "or its VAE in float32 or bfloat16"
        )
    costs = ctx.meter.costs or Costs()
    told: dict[str, Any] = {"rewards": _filled(rewards), "judged": _filled(judged)}
    ctx.log(EVENT, count=len(ctx.steps), previews=previews, costs=asdict(costs), **told)
    return done.take([max(range(len(done)), key=told["rewards"].__getitem__)])


def _spread(
    ctx: Context, images: Any, part: Population, whole: list[int], reward: Reward | None
) -> list[float | None]:
    """Scores of the rows that are whole images, None for the others."""
    scores: list[float | None] = [None] * len(part)
    if whole:
        found = ctx.score(images[whole], [part.ids[row] for row in whole], reward)
        for row, value in zip(whole, found.tolist(), strict=True):
            scores[row] = value
    return scores


def _filled(scores: list[float | None]) -> list[float]:
    """The scores, the lowest in place of what is missing."""
    lowest = min((score for score in scores if score is not None), default=0.0)
    return [lowest if score is None else score for score in scores]
