"""Plain sampling under observation: what previews say on the way."""

from __future__ import annotations

from dataclasses import dataclass

from steer.core.checks import rising_fractions, whole
from steer.core.costs import Work
from steer.core.types import Population, Search
from steer.search.context import Context
from steer.search.method import Method


@dataclass(frozen=True)
class Previews(Method):
    """Sample `n` particles to the end and score the x0 previews at fractions `at` of the steps.

    What pilot runs are made with: nothing is chosen on the way and nothing is added to it, so every
    particle is the plain pipeline's own sample. The best of them is returned; the scores are in the
    trace.

    Args:
        at: Where to look, as fractions of the steps: rising, in (0, 1). Fraction f of T steps is
            after floor(f T) denoiser calls, at least one.
        n: Particles per returned image.

    Raises:
        ValueError: Fractions that do not rise in (0, 1), or `n` is not a positive whole number.
    """

    at: tuple[float, ...] = (0.5,)
    n: int = 1

    def __post_init__(self) -> None:
        example = "Previews(at=(0.5, 0.65))"
        object.__setattr__(self, "at", tuple(self.at))
        rising_fractions("at", self.at, example)
        whole("n", self.n, example)

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image."""
        return self.n * steps

    def steps(self, count: int) -> list[int]:
        """Indices of the steps that are looked at, of a run of `count`."""
        calls = [max(int(f * count + 1e-9), 1) for f in self.at]
        return sorted({k - 1 for k in calls if k < count})

    def work(self, steps: int) -> Work:
        """Its rows, a preview of every particle at every step looked at, and all images."""
        return Work.best_of(self.cost(steps), self.n, self.n * len(self.steps(steps)))

    def __call__(self, ctx: Context, start: Population) -> Search:
        """The pipeline's own steps; previews cost decodes and reward calls, no denoiser call."""
        seen = self.steps(len(ctx.steps))
        ctx.log("grid", steps=seen, noise=[ctx.steps[k].noise_share for k in seen])
        finished = []
        for part in ctx.groups(start):
            solver, now = ctx.solver(part), part
            for step in ctx.steps:
                output = yield from ctx.denoise(now, step)
                if step.index in seen:
                    ctx.evaluate(now.at(step.x0(now.x, output)), step)
                now = now.at(solver.step(step, now.x, output, now.ids))
            finished.append(now)
        everyone = Population.join(finished)
        ctx.evaluate(everyone)
        return ctx.winners(everyone)
