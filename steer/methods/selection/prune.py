"""Progressive seed pruning: many particles at first, the promising ones to the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from steer.core.checks import plain_calls, whole
from steer.core.types import Population, Search, Step
from steer.search.context import Context


_CUTS = (0.25, 0.5)
_PLANNED = (0.5, 0.65)  # Spearman .83 and .95 on the bundled world


@dataclass(frozen=True)
class Prune:
    """Start with `start` particles; at fractions `at` of the steps keep the `keep` best.

    Progressive seed pruning (Guimaraes & Perona, arXiv:2607.21591). Particles are ranked by the
    reward of their x0 preview, which the model output of that very step gives: no denoiser call is
    added, and it works with deterministic samplers. The defaults cost what `BestOfN(4)` costs.

    Args:
        start: Particles per returned image at first.
        keep: How many go on after every cut, per returned image; never growing.
        at: Where the cuts are, as fractions of the steps: rising, in (0, 1). A cut at fraction f of
            T steps comes after floor(f T) denoiser calls, at least one; cuts that fall on the same
            step become one, and one on the last step is none.

    Raises:
        ValueError: Numbers that are none, lists that differ in length or order.
    """

    start: int = 8
    keep: tuple[int, ...] = (4, 2)
    at: tuple[float, ...] = _CUTS

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", _sequence("keep", self.keep))
        object.__setattr__(self, "at", _sequence("at", self.at))
        example = "Prune(start=8, keep=(4, 2), at=(0.25, 0.5))"
        whole("start", self.start, example)
        for count in self.keep:
            whole("keep", count, example)
        if len(self.keep) != len(self.at):
            raise ValueError(
                f"keep={self.keep} and at={self.at} differ in length: one size per cut, as in "
                f"{example}"
            )
        if any(after > before for before, after in pairwise((self.start, *self.keep))):
            raise ValueError(
                f"keep={self.keep} with start={self.start}: a population cannot grow; as in "
                f"{example}"
            )
        numbers = all(isinstance(f, int | float) and 0 < f < 1 for f in self.at)
        if not numbers or any(b <= a for a, b in pairwise(self.at)):
            raise ValueError(
                f"at={self.at}: must be rising fractions of the steps between 0 and 1, as in "
                f"{example}"
            )

    @classmethod
    def for_compute(cls, compute: float, steps: int) -> Prune:
        """The widest start that `compute` plain calls of `steps` steps pay for.

        Cuts after half of the steps, to half as many particles as plain calls, and after 65%, to a
        quarter (at least one): later than the published ones, since a cut that comes before the
        previews know anything wastes what it paid for (benchmarks/plan.py).

        Raises:
            ValueError: `compute` below 1.
        """
        plain_calls(compute)
        whole("steps", steps, "steps=20")
        keep = (max(math.floor(compute / 2), 1), max(math.floor(compute / 4), 1))
        plan = cls(keep[0], keep, _PLANNED)
        cuts = plan.cuts(steps)
        first = min(cuts, default=steps - 1) + 1
        rest = plan.cost(steps) - keep[0] * first
        start = math.floor((compute * steps - rest) / first + 1e-9)
        sizes = (start, *keep)
        shrinks = [i for i in range(len(keep)) if sizes[i + 1] < sizes[i]]
        return cls(start, tuple(keep[i] for i in shrinks), tuple(_PLANNED[i] for i in shrinks))

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
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
        return rows

    def __call__(self, ctx: Context, start: Population) -> Search:
        """All particles side by side, fewer after every cut."""
        return (yield from self.walk(ctx, start, ctx.steps))

    def walk(self, ctx: Context, alive: Population, steps: Sequence[Step]) -> Search:
        """The last `steps` of the call's, with the cuts that lie in them, and the winners."""
        solver, cuts = ctx.solver(alive), self.cuts(len(ctx.steps))
        for step in steps:
            output = yield from ctx.denoise(alive, step)
            if step.index in cuts:
                previews = alive.at(step.x0(alive.x, output))
                rows = self._best(ctx, previews, step, cuts[step.index] * ctx.images)
                solver.gather(rows)
                alive, output = alive.take(rows), output[rows]
            alive = alive.at(solver.step(step, alive.x, output, alive.ids))
        return ctx.winners(alive)

    def _best(self, ctx: Context, previews: Population, step: Step, count: int) -> list[int]:
        """Rows to keep, in their old order."""
        if count * len(previews.prompts) >= len(previews):
            return list(range(len(previews)))
        rows = sorted(ctx.top(previews, ctx.evaluate(previews, step), count))
        kept = {previews.ids[row] for row in rows}
        for prompt in previews.prompts:
            own = [name for name in previews.ids if name[0] == prompt]
            ctx.log(
                "select",
                step=step.index,
                prompt=prompt,
                kept=[k for p, k in own if (p, k) in kept],
                dropped=[k for p, k in own if (p, k) not in kept],
            )
        return rows


def _sequence(name: str, value: object) -> tuple:
    if isinstance(value, list | tuple):
        return tuple(value)
    raise ValueError(f"{name}={value!r}: must be a list, one entry per cut, as in {name}=(4, 2)")
