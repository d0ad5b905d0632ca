"""Many particles sketched in a few strides, the best of them finished step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from steer.core.checks import plain_calls, whole
from steer.core.errors import UnsupportedSchedulerError
from steer.core.types import Population, Search
from steer.methods.selection.prune import Prune
from steer.search.context import Context
from steer.search.guidance import apart
from steer.search.short_runs import run, short_grid
from steer.search.starts import FIRST_MADE


_EXAMPLE = "Draft(start=15, keep=(8, 2), at=(0.65, 0.7), through=4)"


@dataclass(frozen=True)
class Draft:
    """`Prune`, with few long strides up to the first cut instead of all of its steps.

    The first steps decide what is in the picture, and a rough solution of them decides nearly as
    well as an exact one: so `start` particles reach the first cut in `through` denoiser calls (DDIM
    moves between evenly spread points of the pipeline's own grid, the cut's own step the last of
    them). The `keep` best by the reward of their x0 preview go on from there with the pipeline's
    own solver and every step that is left. A particle costs a fraction of what `Prune` pays for it
    up to the cut, so that several times as many are drawn; what the strides lose in the preview's
    foresight a late cut makes up for.

    The images are not those of the plain call's noises, which no particle takes step by step: for a
    result that is never below the plain image, take `Prune` or `BestOfN`.

    Args:
        start: Particles per returned image at first.
        keep: How many go on after every cut, per returned image; never growing.
        at: Where the cuts are, as fractions of the steps: rising, in (0, 1).
        through: Denoiser calls up to the first cut, at least 2. Where that cut comes after no more
            steps than that, every one of them is a stride.

    Raises:
        ValueError: Numbers that are none, lists that differ in length or order; when called:
            `through=2` with a second-order solver whose second call is the cut.
        UnsupportedSchedulerError: When called: a solver that cannot begin in the middle.
    """

    start: int = 15
    keep: tuple[int, ...] = (8, 2)
    at: tuple[float, ...] = (0.65, 0.7)
    through: int = 4

    def __post_init__(self) -> None:
        for name in ("keep", "at"):
            object.__setattr__(self, name, getattr(self._fine, name))
        whole("through", self.through, _EXAMPLE)
        if self.through < 2:
            raise ValueError(
                f"through={self.through}: a draft needs at least 2 calls, one in the noise and one "
                f"at the cut; write {_EXAMPLE}"
            )

    @classmethod
    def for_compute(cls, compute: float, steps: int) -> Draft:
        """The most drafts that `compute` plain calls of `steps` steps pay for.

        Cuts after 65% and 70% of the steps, to twice and to half as many particles as plain calls
        (at least one): among the best plans of a replay (benchmarks/drafts.py). Where steps are too
        few for that, those of `Prune`.

        Raises:
            ValueError: `compute` below 1.
        """
        plain_calls(compute)
        whole("steps", steps, "steps=20")
        usual = Prune.for_compute(compute, steps)
        own = (math.floor(2 * compute), max(math.floor(compute / 2), 1))
        for keep, at in ((own, cls.at), (usual.keep, usual.at)):
            least = cls(max(keep, default=1), keep, at)
            each = cls(least.start + 1, keep, at).cost(steps) - least.cost(steps)
            more = math.floor((compute * steps - least.cost(steps)) / each + 1e-9)
            plan = cls(least.start + max(more, 0), keep, at)
            if more > 0 and plan.cost(steps) >= steps:
                return plan
        return cls(usual.start, usual.keep, usual.at)

    @property
    def _fine(self) -> Prune:
        """The cuts, and the steps between and after them."""
        return Prune(self.start, self.keep, self.at)

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return self._fine.populations

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image."""
        first = min(self._fine.cuts(steps), default=0)
        return self._fine.cost(steps) - self.start * (first - self._strides(first))

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Strides for all, then the pipeline's steps for those that are kept."""
        first = min(self._fine.cuts(len(ctx.steps)), default=0)
        begin = self._begin(ctx, first)
        if not begin:
            return (yield from self._fine(ctx, start))
        strides = self._strides(first) - (first - begin)
        drawn, grid = apart(ctx, start), short_grid(ctx.steps[:begin], strides)
        latents = yield from run(ctx, drawn, grid, start.x.dtype)
        drafts = drawn.at(latents.to(start.x.dtype))
        return (yield from self._fine.walk(ctx, drafts, ctx.steps[begin:]))

    def _strides(self, first: int) -> int:
        """Denoiser calls before the one at the first cut."""
        return min(self.through - 1, first)

    def _begin(self, ctx: Context, first: int) -> int:
        """Where the solver takes over: at the cut, or a call before, if that is inside its step."""
        if not first:
            return 0
        try:
            _check_beginning(ctx, first)
            return first
        except UnsupportedSchedulerError:
            _check_beginning(ctx, first - 1)
        if self.through == 2 and first > 1:
            raise ValueError(
                "through=2: the scheduler asks twice per step, and the cut is at the second call; "
                "write through=3, or another at="
            )
        return first - 1


def _check_beginning(ctx: Context, index: int) -> None:
    """Raise UnsupportedSchedulerError unless the call's solver can begin at a step."""
    step = ctx.steps[index]
    zero = torch.zeros(1, 1, 1, 1, device=step.t.device)
    ctx.make_solver(False).step(step, zero, zero, [(0, FIRST_MADE)])
