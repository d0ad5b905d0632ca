"""Lookahead sample guidance: towards what a handful of cheap samples promised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steer.core.checks import positive, predicate, whole
from steer.core.costs import ROWS, Costs, Work, check_costs
from steer.core.rows import rows_by_prompt
from steer.core.sphere import radius
from steer.core.types import Population, Search, Step, wide
from steer.core.when import When, between
from steer.methods.selection.best_of_n import BestOfN
from steer.search.context import Context
from steer.search.guidance import leave_plain_names, reach, shift_output, window
from steer.search.lookahead import LookaheadSet, look_ahead, pull_towards_reward, standardise
from steer.search.method import Method
from steer.search.short_runs import Asking


_USUAL = between(0.0, 0.5)
_EXAMPLE = "LookaheadGuidance(n=1, lookaheads=8, through=8)"


@dataclass(frozen=True)
class LookaheadGuidance(Method):
    """Look ahead from many noises in few steps, then guide full samples by what was seen.

    LiDAR (arXiv:2602.03211). First `lookaheads` noises are sampled in `through` deterministic steps
    of the pipeline's own grid, decoded and scored. Their clean latents z_i stand in for the model's
    data: with l_i = -|x - alpha z_i|^2 / (2 sigma^2) and rewards r_i in standard deviations, every
    guided step moves x0 by

        s sum_i (softmax(l + lam r)_i - softmax(l)_i) z_i

    which at s = 1 is exactly what tilting that empirical mixture by exp(lam r) does to its score.
    No network is asked, nothing is differentiated, nothing decoded: guidance itself is free, and
    works for any reward and solver, flow models included.

    `strength` counts such moves: at strength k a step moves its next latents as k moves in a row
    would, each by the step's own share q of the shift (`steer.search.guidance.reach`), so by
    1 - (1 - q)^k in all. It is k for small steps, and never overshoots in large ones.

    Args:
        n: Particles per returned image that are sampled in full; the best is returned.
        lookaheads: Cheap samples per returned image; the particles' own noises are among them.
        through: Steps per cheap sample.
        lam: Inverse temperature per standard deviation of the lookahead rewards. In latents of many
            dimensions distances are large numbers, so only a large one outweighs them; in the end
            it picks the best one's neighbourhood.
        strength: See above; 0 guides nothing.
        when: Steps that are guided; the first half, since later ones would copy what the short
            runs did badly.
        lookahead: A `LookaheadSet`, or the path of a saved one, in place of the cheap samples.

    Raises:
        ValueError: Arguments of the wrong kind; when called: a reward that only ranks candidates,
            or a set without the prompt, of other latents, or of another reward.
    """

    n: int = 1
    lookaheads: int = 8
    through: int = 8
    lam: float = 1000.0
    strength: float = 2.0
    when: When = _USUAL
    lookahead: LookaheadSet | str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("n", "lookaheads", "through"):
            whole(name, getattr(self, name), _EXAMPLE)
        positive("lam", self.lam, zero=True, none=False)
        positive("strength", self.strength, zero=True, none=False)
        predicate(self.when, "between(0, 0.5)")
        if isinstance(self.lookahead, str | Path):
            object.__setattr__(self, "lookahead", LookaheadSet.load(self.lookahead))
        if not isinstance(self.lookahead, LookaheadSet | None):
            raise ValueError(
                f"lookahead={self.lookahead!r}: must be a LookaheadSet or the path of one; make "
                "one with steer.pipeline.lookaheads(guided, prompts)"
            )

    @classmethod
    def for_compute(cls, compute: float, steps: int, costs: Costs = ROWS) -> LookaheadGuidance:
        """One full sample per 4 plain calls, and the cheap samples that the rest pays for.

        Raises:
            ValueError: `compute` does not pay for two cheap samples beside a full one.
        """
        positive("compute", compute, none=False)
        check_costs(costs)
        n = max(1, math.floor(compute / 4))
        through = min(cls.through, steps)

        def work(count: int) -> Work:
            return cls(n=n, lookaheads=count).work(steps)

        count = costs.most(work, compute, steps)
        if count < 2 or not costs.fits(work(count), compute, steps):
            raise ValueError(
                f"compute={compute!r}: LookaheadGuidance needs {1 + 2 * through / steps:.3g} plain "
                "calls at least; raise compute"
            )
        return cls(n=n, lookaheads=count)

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return (self.n,) if self.lookahead is not None else (self.n, self.lookaheads)

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image."""
        ahead = 0 if self.lookahead is not None else self.lookaheads * min(self.through, steps)
        return self.n * steps + (ahead if self.lam and self.strength else 0)

    def work(self, steps: int) -> Work:
        """Its rows, and images of the cheap samples and of the full ones."""
        looks = self.lookahead is None and self.lam and self.strength
        return Work.best_of(self.cost(steps), self.n, self.lookaheads if looks else 0)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Look ahead, then sample a lane at a time; the best of all."""
        on = self.lam and self.strength
        guided = window(self.when, len(ctx.steps), type(self).__name__) if on else []
        scales = self._scales(ctx, guided)
        if not scales:
            return (yield from BestOfN(self.n)(ctx, start))
        sets = yield from self._sets(ctx, start)
        sets = {p: (z, self.lam * standardise(r)) for p, (z, r) in sets.items()}
        finished, named = [], leave_plain_names(ctx, start)
        for part, drawn in zip(ctx.groups(named), ctx.groups(start), strict=True):
            done = yield from self._sample(ctx, part, drawn, sets, scales)
            if self.n > 1:
                ctx.evaluate(done)
            finished.append(done)
        return ctx.winners(Population.join(finished))

    def _scales(self, ctx: Context, guided: list[int]) -> dict[int, float]:
        """Step index to the factor of the shift, `(1 - (1 - q)^strength) / q`."""
        reaches = {index: reach(ctx, ctx.steps[index]) for index in guided}
        return {
            index: (1 - max(1 - q, 0.0) ** self.strength) / q for index, q in reaches.items() if q
        }

    def _sets(self, ctx: Context, start: Population) -> Asking[Mapping[int, tuple[Tensor, Tensor]]]:
        """Clean latents and rewards by prompt."""
        if self.lookahead is None:
            return (yield from look_ahead(ctx, start, self.lookaheads * ctx.images, self.through))
        assert isinstance(self.lookahead, LookaheadSet)
        self.lookahead.check(ctx.reward)
        return {p: self.lookahead.of(ctx.prompts[p], start.x) for p in start.prompts}

    def _sample(
        self,
        ctx: Context,
        now: Population,
        drawn: Population,
        sets: Mapping[int, tuple[Tensor, Tensor]],
        scales: dict[int, float],
    ) -> Asking[Population]:
        """One lane from the first step to the last."""
        solver, told = ctx.solver(drawn), []
        for step in ctx.steps:
            output = yield from ctx.denoise(now, step)
            if step.index in scales:
                shift, favoured = _shift(now, step, sets)
                shift = scales[step.index] * shift
                told.append((step, favoured, _length(step, now.x, output, shift)))
                output = shift_output(step, output, shift)
            now = now.at(solver.step(step, now.x, output, drawn.ids))
        for step, favoured, length in told:  # at the end: no waiting for the device on the way
            ctx.tell("guide", now.ids, step, towards=favoured.tolist(), shift=length.tolist())
        return now


def _shift(
    now: Population, step: Step, sets: Mapping[int, tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The shift of x0 at strength 1, and the lookahead that every row favours."""
    shift = torch.zeros_like(wide(now.x))
    favoured = torch.zeros(len(now), dtype=torch.long, device=now.x.device)
    for prompt, rows in rows_by_prompt(now.ids).items():
        towards, weights = pull_towards_reward(now.x[rows], step.alpha, step.sigma, *sets[prompt])
        shift[rows] = towards.to(shift.dtype)
        favoured[rows] = weights.argmax(1)
    return shift, favoured


def _length(step: Step, x: Tensor, output: Tensor, shift: Tensor) -> Tensor:
    """The shift's length as a share of that of x0, `(rows,)`."""
    return (radius(shift) / radius(step.x0(wide(x), wide(output)))).flatten()
