"""Rollover budget forcing: steps that find something better early leave the rest to later ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from steer.core.checks import whole
from steer.core.costs import Work
from steer.core.errors import UnsupportedSchedulerError
from steer.core.types import Name, Population, Search, Step
from steer.methods.particles.branching import Mover, best_of_lines, check_moves, deal_lines
from steer.rewards.parts import check_absolute
from steer.search.bars import Bar, Bars, read_bar
from steer.search.context import Context
from steer.search.kernels.choose import choose_kernel, further_calls
from steer.search.kernels.draws import Kernel
from steer.search.method import Method
from steer.search.short_runs import Asking


_EXAMPLE = "RBF(n=4)"


class Proposal(NamedTuple):
    """A next state of one line, with the denoiser's output there and its preview's reward."""

    value: float
    name: Name
    x: Tensor
    output: Tensor


@dataclass(eq=False)
class Lines:
    """Where every returned image's trajectory stands.

    Attributes:
        now: A row per line.
        output: The denoiser's output there.
        record: The best preview reward that each line went on from.
        rest: Proposals that each line has left over.
    """

    now: Population
    output: Tensor
    record: list[float]
    rest: list[int]


@dataclass(frozen=True)
class RBF(Method):
    """Propose next states one after the other; take the first that is better than all so far.

    Rollover budget forcing (Kim et al. 2025, arXiv:2503.19385). `n` noises are judged by their
    first x0 preview, and the best goes on. Then every step has a quota of `n` proposals: draws of
    the next state from the same one, each judged by its preview. The first proposal above the best
    preview so far is taken, and what it leaves of the quota rolls over to the next step. A step
    whose quota ends takes the best of its proposals. At the last step that has noise to choose, all
    that is left is spent. A step without noise has one proposal.

    With a `threshold` a step is over as soon as a proposal reaches it, as in Verifier-Threshold
    (arXiv:2512.08985), and what the last step does not need is not spent. That paper does not say
    how its threshold is found; here it is a reward, rewards for the steps in turn, or a
    calibration, whose `alpha` says at which quantile of the accepted pilots' previews its cuts are
    (where it has no cut, the first proposal is taken).

    A proposal costs the one denoiser call that its preview needs, which is that of its next step.
    So T steps cost `n * T` rows, what `BestOfN(n)` costs (more where the kernel makes inner calls).
    Every returned image is a line of its own; lines do not compete. With a sampler that draws noise
    itself each line's first proposals are what the plain sampler does; the result may be worse than
    the plain image.

    Args:
        n: Noises at first, and proposals per step, per returned image.
        threshold: What is good enough: `None` for whatever is better than before, a reward, a
            tuple of rewards spread evenly over the steps, a `Calibration`, or the path of one.
        batch: Proposals that are made side by side; of those that are good enough the best is
            taken. More is faster, and wastes what the first one would have left over.
        eta: Share of fresh noise in DDIM moves, in (0, 1].
        kernel: Which law moves them, as for `SMC`. Solvers with history cannot go from one state
            twice: `"auto"` takes our own moves for them.

    Raises:
        ValueError: Arguments of the wrong kind; when called: a reward that only ranks candidates.
        ThresholdError: When called: a calibration of another reward or schedule.
        UnsupportedSchedulerError: When called: a kernel that the schedule does not have, or
            `"solver"` with history.
    """

    n: int = 4
    threshold: Bar | None = None
    batch: int = 1
    eta: float = 1.0
    kernel: str | Kernel = "auto"

    reorders: ClassVar[bool] = True
    """Rows come and go between steps: caches of activations per row cannot follow."""

    def __post_init__(self) -> None:
        whole("n", self.n, _EXAMPLE)
        whole("batch", self.batch, "RBF(n=8, batch=4)")
        if self.threshold is not None:
            bar = read_bar(self.threshold, "RBF(n=4, threshold=0.6)")
            object.__setattr__(self, "threshold", bar)
        check_moves(self.kernel, self.eta)

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return (self.n, self.batch)

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, at most: fewer with a threshold."""
        return self.n * (steps + (steps - 1) * self._further(steps))

    def _further(self, steps: int) -> int:
        return max(further_calls(self.kernel, index, steps) for index in range(steps))

    def work(self, steps: int) -> Work:
        """Its rows, and a preview at each."""
        return Work.best_of(self.cost(steps), 1, self.n * steps) + Work(decodes=1, scores=1)

    def rows_at(self, steps: int, indices: Sequence[int]) -> int:
        """Denoiser rows per returned image at some of the steps: all quotas so far, at most."""
        if self._further(steps):
            return self.cost(steps) if indices else 0
        return (self.n if 0 in indices else 0) + self.n * max(indices, default=0)

    def suits(self, ctx: Context) -> bool:
        """Whether there is a stochastic law."""
        try:
            choose_kernel(ctx, ctx.solver(), type(self).__name__, self.kernel, self.eta)
        except UnsupportedSchedulerError:
            return False
        return True

    def __call__(self, ctx: Context, start: Population) -> Search:
        """The best noise, then step after step a next state that is good enough."""
        check_absolute(ctx.reward, type(self).__name__)
        mover, start = Mover.of(ctx, start, type(self).__name__, self.kernel, self.eta, jumps=True)
        good = self._good_enough(ctx, mover)
        lines = yield from _first(ctx, mover, start)
        for step in ctx.steps[:-1]:
            yield from self._advance(ctx, mover, lines, step, good)
        now = yield from mover.step(ctx.steps[-1], lines.now, lines.output)
        return now if ctx.images == 1 else now.take(ctx.top(now, ctx.evaluate(now), ctx.images))

    def _good_enough(
        self, ctx: Context, mover: Mover
    ) -> Callable[[Lines, int, Proposal, int], bool]:
        """Whether a line's proposal at a step ends the step."""
        if self.threshold is None:
            noisy = [step.index for step in ctx.steps[:-1] if not mover.is_silent([step])]
            last = max(noisy, default=-1) + 1
            return lambda lines, line, found, at: at != last and found.value > lines.record[line]
        bars = Bars.of(ctx, self.threshold, range(1, len(ctx.steps)))
        return lambda lines, line, found, at: found.value >= bars.at(at, ctx.prompts[found.name[0]])

    def _advance(
        self,
        ctx: Context,
        mover: Mover,
        lines: Lines,
        step: Step,
        good: Callable[[Lines, int, Proposal, int], bool],
    ) -> Asking[None]:
        """Every line from one step to the next; those that are done wait for the others."""
        following, left = ctx.steps[step.index + 1], [self.n + rest for rest in lines.rest]
        best: dict[int, Proposal] = {}
        told: list[Name] = []
        waiting, silent = list(range(len(left))), mover.is_silent([step])
        while waiting:
            width = 1 if silent else self.batch
            rows = [line for line in waiting for _ in range(min(width, left[line]))]
            drawn = _proposals(ctx, mover, lines.now, rows, set(best), step)
            found = yield from _judged(ctx, mover, drawn, lines.output[rows], step)
            for line, proposal in zip(rows, found, strict=True):
                left[line] -= 1
                if line not in best or proposal.value > best[line].value:
                    best[line] = proposal
            told += [proposal.name for proposal in found]
            waiting = [
                line
                for line in waiting
                if left[line] and not silent and not good(lines, line, best[line], following.index)
            ]
        chosen = [best[line] for line in range(len(left))]
        names = tuple(proposal.name for proposal in chosen)
        ctx.trace.tell_choice(told, [told.index(name) for name in names], following.index)
        lines.now = Population(torch.stack([proposal.x for proposal in chosen]), names)
        lines.output = torch.stack([proposal.output for proposal in chosen])
        lines.record = [max(old, new.value) for old, new in zip(lines.record, chosen, strict=True)]
        lines.rest = left


def _first(ctx: Context, mover: Mover, start: Population) -> Asking[Lines]:
    """Every line at the noise whose preview is best."""
    step = ctx.steps[0]
    output = yield from mover.ask(start, step)
    previews, lines = start.at(step.x0(start.x, output)), deal_lines(start, ctx.images)
    rows, values = best_of_lines(ctx, previews, lines, step)
    ctx.trace.tell_choice(start.ids, rows, step.index)
    record = [values[row] for row in rows]
    return Lines(start.take(rows), output[rows], record, [0] * len(rows))


def _proposals(
    ctx: Context, mover: Mover, now: Population, rows: Sequence[int], tried: set[int], step: Step
) -> Population:
    """These rows of `now`, about to move; a line's first proposal keeps its name, others are new.

    Args:
        ctx, mover, now: The call, what moves rows, and the lines.
        rows: A line per proposal.
        tried: Lines that made one at this step before.
        step: From where they move.
    """
    names, seen = [now.ids[line] for line in rows], set(tried)
    new = []
    for place, line in enumerate(rows):
        if line in seen:
            new.append(place)
        seen.add(line)
    parents = [names[place] for place in new]
    for place, name in zip(new, mover.name_children(parents), strict=True):
        names[place] = name
    if new:
        ctx.tell_descent("branch", [names[place] for place in new], step, parents)
    return Population(now.take(rows).x, tuple(names))


def _judged(
    ctx: Context, mover: Mover, drawn: Population, output: Tensor, step: Step
) -> Asking[list[Proposal]]:
    """Every row moved, asked and judged at the next step."""
    moved = yield from mover.step(step, drawn, output)
    following = ctx.steps[step.index + 1]
    answer = yield from mover.ask(moved, following)
    values = ctx.evaluate(moved.at(following.x0(moved.x, answer)), following).tolist()
    return [Proposal(*row) for row in zip(values, moved.ids, moved.x, answer, strict=True)]
