"""Best-of-N guidance: half-way, all particles are drawn towards the best one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from steer.core.checks import positive, predicate, whole
from steer.core.costs import Work
from steer.core.sphere import radius
from steer.core.types import Population, Search, Step, wide
from steer.core.when import When, at, between
from steer.methods.selection.best_of_n import BestOfN
from steer.search.context import Context
from steer.search.guidance import leave_plain_names, reach, shift_output, window
from steer.search.method import Method


_EXAMPLE = "BestOfNGuidance(4, pull=0.9, when=between(0.4, 0.44))"
_USUAL = between(0.4, 0.44) | at(0.4)


@dataclass(frozen=True)
class BestOfNGuidance(Method):
    """Sample `n` particles; in a short window pull all towards the one with the best x0 preview.

    BoNG (aailab-kaist/BoNG, NeurIPS 2026). At every step of the window

        x0_j <- x0_j + s (x0_best - x0_j)

    and the pipeline's own solver goes on from there, so no denoiser call is added. What a given s
    comes to depends on the step: only a part of a shift of x0 reaches the next latents
    (`steer.search.guidance.reach`). Here s follows from `pull`, the share of the gap between x0_j
    and x0_best that is closed over the whole window, so that the same `pull` means the same for any
    number of steps, solver and noise schedule, flow models included. After the window particles
    share a layout and differ in what the remaining steps make of it; the best of them is returned.

    With several images per prompt the particles are dealt into as many groups, each with a best
    one of its own, so that the images do not become one.

    Args:
        n: Particles per returned image.
        pull: Share of the gap that the window closes, in [0, 1]; 0 is `BestOfN(n)`. (With 100
            steps of SD 1.5, the authors' s=6 at steps 40 to 43 comes to 0.88.)
        when: The window: steps at which previews are scored and particles pulled.

    Raises:
        ValueError: Arguments of the wrong kind.
    """

    n: int
    pull: float = 0.9
    when: When = _USUAL

    def __post_init__(self) -> None:
        whole("n", self.n, _EXAMPLE)
        positive("pull", self.pull, zero=True, none=False)
        if self.pull > 1:
            raise ValueError(f"pull={self.pull!r}: a share of the gap, at most 1")
        predicate(self.when, _EXAMPLE)

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image."""
        return self.n * steps

    def work(self, steps: int) -> Work:
        """Its rows, and previews of all particles at the steps that pull."""
        pulls = len(self.when.indices(steps)) if self.n > 1 and self.pull else 0
        return Work.best_of(self.cost(steps), self.n, self.n * pulls)

    def rows_at(self, steps: int, indices: Sequence[int]) -> int:
        """Denoiser rows per returned image at some of the steps."""
        return self.n * len(indices)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """All particles side by side, pulled in the window."""
        pulls = self._pulls(ctx) if self.n > 1 and self.pull else {}
        if not pulls:
            return (yield from BestOfN(self.n)(ctx, start))
        now, solver = leave_plain_names(ctx, start), ctx.solver(start)
        for step in ctx.steps:
            output = yield from ctx.denoise(now, step)
            if step.index in pulls:
                output = self._pull(ctx, now, step, output, pulls[step.index])
            now = now.at(solver.step(step, now.x, output, start.ids))
        return ctx.winners(now)

    def _pulls(self, ctx: Context) -> dict[int, float]:
        """Step index to s; equal shares of the gap at every step that passes them on."""
        found = window(self.when, len(ctx.steps), type(self).__name__)
        reaches = {index: reach(ctx, ctx.steps[index]) for index in found}
        live = {index: share for index, share in reaches.items() if share}
        if not live:
            return {}
        each = 1 - (1 - self.pull) ** (1 / len(live))
        return {index: each / share for index, share in live.items()}

    def _pull(
        self, ctx: Context, now: Population, step: Step, output: Tensor, scale: float
    ) -> Tensor:
        """The output whose x0 has moved by `scale` times the gap to the best one's."""
        x0 = step.x0(wide(now.x), wide(output))
        leaders = self._leaders(ctx, now, ctx.evaluate(now.at(x0), step).tolist())
        gap = x0[leaders] - x0
        best = [now.ids[row][1] for row in leaders]
        length = (radius(gap) / radius(x0)).flatten().tolist()
        ctx.tell("guide", now.ids, step, gap=length, best=best)
        return shift_output(step, output, scale * gap)

    def _leaders(self, ctx: Context, now: Population, rewards: list[float]) -> list[int]:
        """The best row of every row's group; ties go to the earlier one."""
        best: dict[tuple[int, int], int] = {}
        groups, places = [], dict.fromkeys(now.prompts, 0)
        for row, (prompt, _) in enumerate(now.ids):
            group = (prompt, places[prompt] % ctx.images)
            places[prompt] += 1
            groups.append(group)
            if group not in best or rewards[row] > rewards[best[group]]:
                best[group] = row
        return [best[group] for group in groups]
