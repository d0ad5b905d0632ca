"""Depth-first search: one trajectory, taken back to more noise whenever it does not look good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from steer.core.checks import plain_calls, positive, rising_fractions
from steer.core.costs import ROWS, Costs, Work, check_costs
from steer.core.errors import UnsupportedSchedulerError
from steer.core.transition import renoise
from steer.core.types import Population, Search
from steer.methods.particles.trajectories import Line, State, move, part, population
from steer.rewards.parts import check_absolute
from steer.rewards.thresholds.calibration import Calibration
from steer.search.bars import Bar, Bars, read_bar
from steer.search.context import Context
from steer.search.method import Method
from steer.search.sampling import beginning
from steer.search.short_runs import Asking


_EXAMPLE = "DepthFirst(compute=4, threshold=(0.4, 0.5, 0.6), at=(0.5, 0.65))"
_AT = (0.5, 0.65)


@dataclass(frozen=True)
class DepthFirst(Method):
    """Sample one trajectory; where its preview is not good enough, go back to noise and retry.

    Depth-first search with backtracking (Zhang et al. 2025, arXiv:2505.23614). At the fractions
    `at` of the steps the x0 preview is scored. Below the threshold of that step the latents are
    noised again by `depth` of the steps, with fresh noise,

        x' = (alpha' / alpha) x + sqrt(sigma'^2 - sigma^2 (alpha' / alpha)^2) z,

    and denoised from there. The best state at every step is kept, and where the budget ends, the
    search goes on from that one and lets everything pass. An image that is finished below its
    threshold is taken back likewise. What is returned is the best finished image.

    Easy prompts cost one plain call, and a few previews; hard ones up to `compute`. Every returned
    image is a search of its own, with a budget of its own; all finished images of a prompt are
    compared. Where nothing is below its threshold this is the plain call, bit for bit.

    Args:
        compute: Plain calls' worth of denoiser rows per returned image, at most; at least 1. Up to
            one row may be left.
        threshold: What is good enough: a reward for all places, rewards for each of `at` and the
            finished image, a `Calibration` (its steps take the place of `at`, its threshold is the
            finished image's) or the path of one. `None`: nothing is, so that all of the budget
            goes into the first place, and its best state is finished.
        at: Where previews are judged, as rising fractions of the steps in (0, 1); after floor(f T)
            denoiser calls, at least two.
        depth: How far to go back, as a share of the steps, in (0, 1]; at least one step.

    Raises:
        ValueError: Arguments of the wrong kind; when called: a reward that only ranks candidates.
        ThresholdError: When called: a calibration of another reward or schedule.
        UnsupportedSchedulerError: When called: a solver that cannot begin in the middle.
    """

    compute: float
    threshold: Bar | None = None
    at: tuple[float, ...] = _AT
    depth: float = 0.5

    reorders: ClassVar[bool] = True
    """Rows go back to earlier steps: caches of activations per row cannot follow."""

    def __post_init__(self) -> None:
        plain_calls(self.compute)
        if isinstance(self.at, list):
            object.__setattr__(self, "at", tuple(self.at))
        rising_fractions("at", self.at, "at=(0.5, 0.65)")
        positive("depth", self.depth, none=False)
        if self.depth > 1:
            raise ValueError(f"depth={self.depth!r}: a share of the steps, above 0 and at most 1")
        if self.threshold is None:
            return
        object.__setattr__(self, "threshold", read_bar(self.threshold, _EXAMPLE))
        places = len(self.at) + 1
        if isinstance(self.threshold, tuple) and len(self.threshold) != places:
            raise ValueError(
                f"threshold={self.threshold} with at={self.at}: one reward for each of at and one "
                f"for the finished image, as in {_EXAMPLE}"
            )
        if isinstance(self.threshold, Calibration) and self.at != _AT:
            raise ValueError(
                f"at={self.at} with a calibration, which has steps of its own: leave it out"
            )

    @classmethod
    def for_compute(cls, compute: float, steps: int, costs: Costs = ROWS) -> DepthFirst:
        """As many retries as `compute` plain calls pay for, previews included; no threshold.

        `costs` says what a row, a decode, a score cost; by default rows alone count.

        Raises:
            ValueError: `compute` below 1.
        """
        plain_calls(compute)
        check_costs(costs)
        if costs.unit == "rows":
            return cls(compute)
        most = costs.most(lambda k: cls(k / 100).work(steps), compute, steps, least=100)
        return cls(most / 100)

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return (1,)

    def places(self, steps: int) -> list[int]:
        """Steps whose previews are judged; the last one's is the finished image."""
        if isinstance(self.threshold, Calibration):
            return list(self.threshold.steps)
        calls = [max(math.floor(f * steps + 1e-9), 2) for f in self.at]
        return [call - 1 for call in calls]

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, at most."""
        return math.floor(self.compute * steps + 1e-9)

    def work(self, steps: int) -> Work:
        """Its rows, and what all retries would show if they began where they are cheapest."""
        back, spare = self._back(steps), self.cost(steps) - steps
        judged = sorted({place for place in self.places(steps) if 0 < place < steps})
        judged = judged[:1] if self.threshold is None else judged
        again = {place: min(back, place) + 1 for place in judged}
        if self.threshold is not None or not judged:
            again[steps] = min(back, steps)
        retries = -(-spare // min(again.values()))
        passed = [sum(end - back <= k <= end for k in judged) for end in again]
        finished = 1 + (retries if steps in again else 0)
        return Work.best_of(self.cost(steps), finished, len(judged) + retries * max(passed))

    def suits(self, ctx: Context) -> bool:
        """Whether the call's solver can begin where retries do."""
        try:
            self._check_retries(ctx)
        except UnsupportedSchedulerError:
            return False
        return True

    def __call__(self, ctx: Context, start: Population) -> Search:
        """All lines, those that are furthest back first."""
        check_absolute(ctx.reward, type(self).__name__)
        bars = self._bars(ctx)
        self._check_retries(ctx)
        solver, left = ctx.solver(start), self.cost(len(ctx.steps))
        lines = [
            Line(State(name, 0, x, solver), left)
            for name, x in zip(start.ids, start.x.unbind(), strict=True)
        ]
        while going := [line for line in lines if not line.done]:
            index = min(line.tip.index for line in going)
            yield from self._visit(ctx, bars, [x for x in going if x.tip.index == index])
        states = [state for line in lines for state in line.finished]
        return ctx.winners(population(states))

    def _bars(self, ctx: Context) -> Bars:
        steps = len(ctx.steps)
        places = [*self.places(steps), steps]
        if self.threshold is None:
            return Bars({places[0]: math.inf})
        return Bars.of(ctx, self.threshold, places)

    def _visit(self, ctx: Context, bars: Bars, here: Sequence[Line]) -> Asking[None]:
        """These lines at their step: asked, judged, and moved on or taken back."""
        index = here[0].tip.index
        step = ctx.steps[index] if index < len(ctx.steps) else None
        clean = now = population([line.tip for line in here])
        if step is not None:
            output = yield from ctx.denoise(now, step)
            clean = now.at(step.x0(now.x, output))
            for line, own in zip(here, output.unbind(), strict=True):
                line.tip, line.left = replace(line.tip, output=own), line.left - 1
        else:
            for line in here:
                line.finished.append(line.tip)
        rows = [row for row, line in enumerate(here) if self._can_choose(ctx, line)]
        if rows and bars.judges(index):
            values = ctx.evaluate(clean.take(rows), step).tolist()
            self._judge(ctx, bars, here, [here[row] for row in rows], values)
        stay = [line for line in here if line.tip.index == index]
        if step is not None:
            move(step, stay)
        for line in stay if step is None else ():
            line.done = True

    def _judge(
        self,
        ctx: Context,
        bars: Bars,
        here: Sequence[Line],
        judged: Sequence[Line],
        values: Sequence[float],
    ) -> None:
        """Note what lines are worth, and take back those that are not good enough."""
        failing = []
        for line, value in zip(judged, values, strict=True):
            line.tip = replace(line.tip, value=value)
            if value < bars.at(line.tip.index, ctx.prompts[line.tip.name[0]]):
                failing.append(line)
        part(here, failing)
        for line in failing:
            self._take_back(ctx, line)

    def _can_choose(self, ctx: Context, line: Line) -> bool:
        """Whether a reward would decide anything: going back, or on from another state."""
        return _spare(ctx, line) > 0 or line.tip.index in line.left_behind

    def _take_back(self, ctx: Context, line: Line) -> None:
        """A fresh way to this step from further back; on from the best where none is paid for."""
        old, best = line.tip, line.left_behind.get(line.tip.index)
        best = old if best is None or best.value < old.value else best
        there = self._retry_at(ctx, line)
        if there is None:
            line.tip = best
            return
        line.left_behind[old.index] = best
        (name,) = ctx.starts.names([old.name[0]])
        ctx.starts.keep([name], ctx.initial([old.name]).x.unbind())
        ctx.tell_descent("branch", [name], ctx.steps[there], [old.name])
        noised = renoise(old.x[None], _level(ctx, old.index), _level(ctx, there))
        x = noised.sample(ctx.starts.noise([name], (there,), old.x[None])).to(old.x.dtype)
        line.tip = State(name, there, x[0], ctx.make_solver(False))

    def _retry_at(self, ctx: Context, line: Line) -> int | None:
        """The step to which a line goes back, if there is one that is paid for."""
        index, spare = line.tip.index, _spare(ctx, line)
        there = index - min(self._back(len(ctx.steps)), index, spare)
        if there >= index:
            return None
        there = beginning(ctx, (there, max(there - 1, 0)))
        return there if there >= index - spare else None

    def _back(self, steps: int) -> int:
        return max(math.floor(self.depth * steps + 1e-9), 1)

    def _check_retries(self, ctx: Context) -> None:
        """Refuse a solver that cannot begin in the middle at the first step, not on the way."""
        steps = len(ctx.steps)
        for index in (*self.places(steps), steps):
            there = max(index - self._back(steps), 0)
            beginning(ctx, (there, max(there - 1, 0)))


def _level(ctx: Context, index: int) -> tuple[float, float]:
    """alpha and sigma at a step; at the number of steps, of finished latents."""
    if index < len(ctx.steps):
        return ctx.steps[index].alpha, ctx.steps[index].sigma
    return ctx.steps[-1].alpha_next, ctx.steps[-1].sigma_next


def _spare(ctx: Context, line: Line) -> int:
    """Steps that a line may go back: what it takes to come here again and to finish is paid for."""
    return line.left - len(ctx.steps) + line.tip.index
