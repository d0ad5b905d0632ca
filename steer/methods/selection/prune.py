"""Progressive seed pruning: many particles at first, the promising ones to the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from steer.core.checks import finite, plain_calls, rising_fractions, whole
from steer.core.costs import ROWS, Costs, Work, check_costs
from steer.core.errors import UnsupportedSchedulerError
from steer.core.types import Population, Search, Step
from steer.search.context import Context
from steer.search.guidance import leave_plain_names
from steer.search.method import Method, kl_of_draws
from steer.search.picks.base import Pick, check_pick
from steer.search.picks.ranks import Best
from steer.search.sampling import check_beginning
from steer.search.short_runs import run, short_grid


_EXAMPLE = "Prune(start=8, keep=(4, 2), at=(0.25, 0.5))"
_CUTS = (0.25, 0.5)
_PLANNED = (0.5, 0.65)  # Spearman .83 and .95 on the bundled world
_DRAFTED = (0.65, 0.7)  # drafts know less than particles that took every step: later cuts
_STRIDES = 4  # enough up to a guidance scale of 4.5; stronger guidance needs more (_strides)


@dataclass(frozen=True)
class Prune(Method):
    """Start with `start` particles; at fractions `at` of the steps keep the `keep` best.

    Progressive seed pruning (Guimaraes & Perona, arXiv:2607.21591). Particles are ranked by the
    reward of their x0 preview, which the model output of that very step gives: no denoiser call is
    added, and it works with deterministic samplers. The defaults cost what `BestOfN(4)` costs.

    With `strides` the particles are *drafts*: they reach the first cut in that many denoiser calls
    and not in all of its steps. The first steps decide what is in the picture, and a rough solution
    of them decides nearly as well as an exact one. Drafts move by DDIM between evenly spread points
    of the pipeline's own grid, the cut's own step the last of them; survivors go on with the
    pipeline's own solver and every step that is left. A draft costs a fraction of what a particle
    pays for every step, so that several times as many are drawn; what the strides lose in the
    preview's foresight a late cut makes up for. The images are not those of the plain call's
    noises, which no draft takes step by step: for a result that is never below the plain image,
    leave `strides` out.

    Args:
        start: Particles per returned image at first.
        keep: How many go on after every cut, per returned image; never growing.
        at: Where the cuts are, as fractions of the steps: rising, in (0, 1). A cut at fraction f of
            T steps comes after floor(f T) denoiser calls, at least one; cuts that fall on the same
            step become one, and one on the last step is none.
        strides: Denoiser calls up to the first cut, its own included, at least 2; `None` for every
            step. Where that cut comes after no more steps than that, every one is a stride.
        select: Which go on after a cut, such as `steer.picks.Diverse()`; `None` for the best. What
            is returned in the end is the call's own `select`.

    Raises:
        ValueError: Numbers that are none, lists that differ in length or order; when called:
            `strides=2` with a second-order solver whose second call is the cut.
        UnsupportedSchedulerError: When called: `strides` with a solver that cannot begin in the
            middle.
    """

    start: int = 8
    keep: tuple[int, ...] = (4, 2)
    at: tuple[float, ...] = _CUTS
    strides: int | None = None
    select: Pick | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", _sequence("keep", self.keep))
        object.__setattr__(self, "at", _sequence("at", self.at))
        whole("start", self.start, _EXAMPLE)
        for count in self.keep:
            whole("keep", count, _EXAMPLE)
        if len(self.keep) != len(self.at):
            raise ValueError(
                f"keep={self.keep} and at={self.at} differ in length: one size per cut, as in "
                f"{_EXAMPLE}"
            )
        if any(after > before for before, after in pairwise((self.start, *self.keep))):
            raise ValueError(
                f"keep={self.keep} with start={self.start}: a population cannot grow; as in "
                f"{_EXAMPLE}"
            )
        rising_fractions("at", self.at, _EXAMPLE)
        if self.select is not None:
            check_pick("select", self.select)
        self._check_strides()

    def _check_strides(self) -> None:
        if self.strides is None:
            return
        example = "Prune(start=15, keep=(8, 2), at=(0.65, 0.7), strides=4)"
        whole("strides", self.strides, example)
        if self.strides < 2:
            raise ValueError(
                f"strides={self.strides}: a draft needs at least 2 calls, one in the noise and one "
                f"at the cut; write {example}"
            )

    @classmethod
    def for_compute(
        cls,
        compute: float,
        steps: int,
        costs: Costs = ROWS,
        *,
        drafts: bool = False,
        guidance: float = 1.0,
    ) -> Prune:
        """The widest start that `compute` plain calls of `steps` steps pay for.

        Cuts after half of the steps, to half as many particles as plain calls, and after 65%, to a
        quarter (at least one): later than the published ones, since a cut that comes before the
        previews know anything wastes what it paid for (benchmarks/plan.py).

        Args:
            compute: Plain calls, at least 1.
            steps: Denoiser calls of a plain call.
            costs: What a row, a decode, a score cost; by default rows alone count.
            drafts: Plan four strides up to the first cut, with cuts after 65% and 70% of the steps
                to twice and to half as many particles as plain calls (at least one): among the best
                plans of a replay (benchmarks/drafts.py). Fewer are kept at the first cut where the
                budget is too small for that; where steps are too few, the cuts are the usual ones.
            guidance: The call's scale of classifier-free guidance, 1 for none. Above 4.5 drafts get
                more strides: the flow that is followed is steeper (benchmarks/guidance_drafts.py).

        Raises:
            ValueError: `compute` below 1, or a `guidance` that is no number.
        """
        plain_calls(compute)
        check_costs(costs)
        whole("steps", steps, "steps=20")
        usual = _plan(compute, steps, costs)
        return _plan_drafts(usual, compute, steps, costs, _strides(guidance)) if drafts else usual

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image: at first, and after every cut."""
        return (self.start, *self.keep)

    def cuts(self, steps: int) -> dict[int, int]:
        """Step index to the number kept there."""
        calls = [max(math.floor(f * steps + 1e-9), 1) for f in self.at]
        return {k - 1: n for k, n in zip(calls, self.keep, strict=True) if k < steps}

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image."""
        cuts, alive, rows = self.cuts(steps), self.start, 0
        for index in range(steps):
            rows += alive
            alive = cuts.get(index, alive)
        first = self._first_cut(steps)
        return rows - self.start * (first - self._calls_before(first))

    def work(self, steps: int) -> Work:
        """Its rows, previews of all that are alive at a cut, and the last survivors' images."""
        alive, previews = self.start, 0
        for _, kept in sorted(self.cuts(steps).items()):
            previews += alive if kept < alive else 0
            alive = kept
        return Work.best_of(self.cost(steps), alive, previews)

    def rows_at(self, steps: int, indices: Sequence[int]) -> int:
        """Denoiser rows per returned image at some of the steps; drafts may stride over them."""
        cuts, alive, rows = self.cuts(steps), self.start, 0
        for index in range(steps):
            rows += alive if index in indices else 0
            alive = cuts.get(index, alive)
        return rows

    def kl(self, ctx: Context, prompt: int) -> float | None:
        """At most that of the best of all draws, whatever the cuts looked at."""
        return kl_of_draws(ctx, prompt)

    def suits(self, ctx: Context) -> bool:
        """Whether the call's solver can begin where the strides end, and has points for all."""
        first = self._first_cut(len(ctx.steps))
        try:
            begin = 0 if self.strides is None else self._begin(ctx, first)
        except (UnsupportedSchedulerError, ValueError):
            return False
        strides = self._calls_before(first) - (first - begin)
        return not begin or len(short_grid(ctx.steps[:begin], strides)) == strides

    def __call__(self, ctx: Context, start: Population) -> Search:
        """All particles side by side, fewer after every cut."""
        ctx.judging.picking.watch(self.select)
        first = self._first_cut(len(ctx.steps))
        begin = 0 if self.strides is None else self._begin(ctx, first)
        if begin:
            start = leave_plain_names(ctx, start)
            grid = short_grid(ctx.steps[:begin], self._calls_before(first) - (first - begin))
            latents = yield from run(ctx, start, grid, start.x.dtype)
            start = start.at(latents.to(start.x.dtype))
        return (yield from self.walk(ctx, start, ctx.steps[begin:]))

    def walk(self, ctx: Context, alive: Population, steps: Sequence[Step]) -> Search:
        """The last `steps` of the call's, with the cuts that lie in them, and the winners."""
        solver, cuts = ctx.solver(alive), self.cuts(len(ctx.steps))
        for step in steps:
            output = yield from ctx.denoise(alive, step)
            if step.index in cuts:
                previews = alive.at(step.x0(alive.x, output))
                rows = self._survivors(ctx, previews, step, cuts[step.index] * ctx.images)
                solver.gather(rows)
                alive, output = alive.take(rows), output[rows]
            alive = alive.at(solver.step(step, alive.x, output, alive.ids))
        return ctx.winners(alive)

    def _survivors(self, ctx: Context, previews: Population, step: Step, count: int) -> list[int]:
        """Rows to keep, in their old order."""
        if count * len(previews.prompts) >= len(previews):
            return list(range(len(previews)))
        values, judging = ctx.evaluate(previews, step).tolist(), ctx.judging
        pick = self.select or Best()
        found = judging.picking.rows(
            previews.ids, values, judging.flagged, count, pick=pick, step=step
        )
        rows = sorted(found)
        ctx.trace.tell_choice(previews.ids, rows, step.index)
        return rows

    def _first_cut(self, steps: int) -> int:
        """Index of the step with the first cut; 0 where there is none."""
        return min(self.cuts(steps), default=0)

    def _calls_before(self, first: int) -> int:
        """Denoiser calls before the one at the first cut."""
        return first if self.strides is None else min(self.strides - 1, first)

    def _begin(self, ctx: Context, first: int) -> int:
        """Where the solver takes over: at the cut, or a call before, if that is inside its step."""
        if not first:
            return 0
        try:
            check_beginning(ctx, first)
            return first
        except UnsupportedSchedulerError:
            check_beginning(ctx, first - 1)
        if self.strides == 2 and first > 1:
            raise ValueError(
                "strides=2: the scheduler asks twice per step, and the cut is at the second call; "
                "write strides=3, or another at="
            )
        return first - 1


def _plan(compute: float, steps: int, costs: Costs) -> Prune:
    """The plan without strides."""
    keep = (max(math.floor(compute / 2), 1), max(math.floor(compute / 4), 1))
    widest = _widest(Prune(keep[0], keep, _PLANNED), compute, steps, costs)
    sizes = (widest.start, *keep)
    shrinks = [i for i in range(len(keep)) if sizes[i + 1] < sizes[i]]
    return Prune(sizes[0], tuple(keep[i] for i in shrinks), tuple(_PLANNED[i] for i in shrinks))


def _strides(guidance: float) -> int:
    """Denoiser calls of a draft up to its cut.

    Guidance multiplies the difference of two predictions, and with it how fast latents may turn:
    Euler steps stay stable where their number grows with the scale. As many strides are planned as
    a whole schedule of that many steps has up to the cut, and the cut's own call.
    """
    scale = finite("guidance", guidance, "7.5")
    return max(_STRIDES, 1 + math.ceil(_DRAFTED[0] * scale))


def _plan_drafts(usual: Prune, compute: float, steps: int, costs: Costs, strides: int) -> Prune:
    """The plan with strides, given the one without."""
    widest, last = math.floor(2 * compute), max(math.floor(compute / 2), 1)
    own = [((kept, last), _DRAFTED) for kept in range(widest, last, -1)]
    for keep, at in (*own, (usual.keep, usual.at)):
        least = Prune(max(keep, default=1), keep, at, strides)
        plan = _widest(least, compute, steps, costs)
        if plan.start > least.start and plan.cost(steps) >= steps:
            return plan
    return replace(usual, strides=strides)


def _widest(plan: Prune, compute: float, steps: int, costs: Costs) -> Prune:
    """The plan with as many particles at the start as `compute` plain calls pay for."""

    def work(start: int) -> Work:
        return replace(plan, start=start).work(steps)

    return replace(plan, start=costs.most(work, compute, steps, least=plan.start))


def _sequence(name: str, value: object) -> tuple:
    if isinstance(value, list | tuple):
        return tuple(value)
    raise ValueError(f"{name}={value!r}: must be a list, one entry per cut, as in {name}=(4, 2)")
