"""Blockwise best of n: a few steps in several ways, go on from the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from steer.core.checks import whole
from steer.core.costs import Work
from steer.core.types import Population, Search
from steer.methods.particles.beam import check_counts, counts, spread
from steer.methods.particles.branching import Mover, best_of_lines, check_moves, deal_lines
from steer.search.context import Context
from steer.search.kernels.choose import further_calls
from steer.search.kernels.draws import Kernel
from steer.search.method import Method


_EXAMPLE = "Blockwise(n=4, block=5)"


class Block(NamedTuple):
    """Steps `first` to `end` (exclusive), in `n` ways."""

    first: int
    end: int
    n: int


@dataclass(frozen=True)
class Blockwise(Method):
    """Run `block` steps in `n` ways with fresh noise, judge where they lead, go on from the best.

    CoDe, controlled denoising (Singh et al. 2025, arXiv:2502.00968). Each way is judged by the
    reward of the x0 preview at its end (of the finished image, after the last block). `block=1` is
    SVDD with greedy choice (Li et al. 2024, arXiv:2408.08252); `block` as long as the run is
    `BestOfN` with fresh noise at every step.

    The first block's ways start from `n` noises of their own: the noise is the first thing there is
    to choose (the papers start all of them from one). The preview's denoiser output is the one that
    the winner's next block begins with, so nothing is asked twice and the cost is `n * T`, what
    `BestOfN(n)` costs, for every `block`.

    `n` may be a list, spread evenly over the blocks: `(8, 4, 2)` searches widely at first, `(2, 8)`
    where previews know more. Every returned image is a line of its own; lines do not compete. With
    a sampler that draws noise itself the plain call's own trajectory is among the first block's
    ways, and goes on as long as it wins; the result may be worse than the plain image.

    Args:
        n: Ways, per returned image; a number or a list of them.
        block: Steps in a block, at least 1.
        eta: Share of fresh noise in DDIM moves, in (0, 1].
        kernel: Which law moves them, as for `SMC`. Blocks in which it draws no noise have one way.

    Raises:
        ValueError: Arguments of the wrong kind.
        UnsupportedSchedulerError: When called: a kernel that the schedule does not have.
    """

    n: int | tuple[int, ...] = 4
    block: int = 5
    eta: float = 1.0
    kernel: str | Kernel = "auto"

    reorders: ClassVar[bool] = True
    """Rows change places between steps: caches of activations per row cannot follow."""

    def __post_init__(self) -> None:
        if isinstance(self.n, list):
            object.__setattr__(self, "n", tuple(self.n))
        check_counts("n", self.n, _EXAMPLE)
        whole("block", self.block, _EXAMPLE)
        check_moves(self.kernel, self.eta)

    def plan(self, steps: int) -> list[Block]:
        """The blocks of a run of `steps`; a last step alone has no noise to choose."""
        firsts = range(0, steps, self.block)
        blocks = []
        for number, first in enumerate(firsts):
            n = spread(counts(self.n), number, len(firsts))
            idle = number and first == steps - 1
            blocks.append(Block(first, min(first + self.block, steps), 1 if idle else n))
        return blocks

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, at most: fewer where no noise is drawn."""
        plan = self.plan(steps)
        rows = plan[0].n
        for block in plan:
            rows += block.n * (min(block.end, steps - 1) - block.first)
            for index in range(block.first, block.end):
                rows += block.n * further_calls(self.kernel, index, steps)
        return rows

    def work(self, steps: int) -> Work:
        """Its rows, previews of every block's ways, and the last block's images."""
        looks = [block.n for block in self.plan(steps) if block.n > 1]
        last = self.plan(steps)[-1].n
        previews = sum(looks) - (last if last > 1 else 0)
        return Work.best_of(self.cost(steps), last, previews) + Work(decodes=1, scores=1)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Block after block, every one from the best of the last."""
        mover, now = Mover.of(ctx, start, type(self).__name__, self.kernel, self.eta)
        lines = deal_lines(now, ctx.images)
        output = yield from mover.ask(now, ctx.steps[0])
        for block in self._plan(ctx, mover):
            if block.first:
                rows, now = mover.branch(now, block.n, ctx.steps[block.first])
                lines, output = [lines[row] for row in rows], output[rows]
            for step in ctx.steps[block.first : block.end]:
                if step.index > block.first:
                    output = yield from mover.ask(now, step)
                now = yield from mover.step(step, now, output)
            last = block.end == len(ctx.steps)
            following = ctx.steps[-1 if last else block.end]
            if not last:
                output = yield from mover.ask(now, following)
            if block.n > 1:
                clean = now if last else now.at(following.x0(now.x, output))
                rows, _ = best_of_lines(ctx, clean, lines, None if last else following)
                now, lines = mover.keep(now, rows, following), [lines[row] for row in rows]
                output = output[rows]
        if ctx.images == 1:
            return now
        return now.take(ctx.top(now, ctx.evaluate(now), ctx.images))

    def _plan(self, ctx: Context, mover: Mover) -> list[Block]:
        """The blocks, with one way through those that draw no noise."""
        plan = []
        for block in self.plan(len(ctx.steps)):
            idle = block.first and mover.is_silent(ctx.steps[block.first : block.end])
            plan.append(block._replace(n=1) if idle else block)
        return plan
