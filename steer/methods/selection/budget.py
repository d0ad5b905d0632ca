"""A hard limit on what a method may spend: the best so far when it runs out."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steer.core.checks import plain_calls
from steer.core.costs import Work
from steer.core.errors import SteerError
from steer.core.ledger import Ledger
from steer.core.rows import rows_by_prompt
from steer.core.types import Name, Population, Query, Search, Step
from steer.search.context import Context
from steer.search.method import Around, Method, check_method
from steer.search.sampling import sample_all


@dataclass(frozen=True)
class Budget(Around):
    """Run `method` until it is done or the next query would cost more than `compute` plain calls.

    A row counts one, a row that is differentiated two more; padding counts where it costs, and so
    does the pipeline's first call where the method has no use for it. When the budget ends the
    search is closed and the best finished particles are returned. Where the method costs more than
    the budget, enough is held back for the plain call until something is finished; that is the
    answer where nothing else is. A method may ask `ctx.left()` to end in good time, as
    NoiseOptimization does to sample what it found.

    How far a search gets may depend on the lane width: wide lanes finish together, narrow ones
    one after the other.

    Args:
        compute: Plain calls' worth of denoiser rows, at least 1.
        method: What to run.

    Raises:
        ValueError: Arguments of the wrong kind; when called: one lane costs more than `compute`.
    """

    compute: float
    method: Method

    def __post_init__(self) -> None:
        plain_calls(self.compute)
        check_method("method", self.method, "Budget(8, BestOfN(16))")

    @property
    def widest(self) -> int:
        """As the method's; within half the budget, so that something is finished in good time."""
        return min(self.method.widest, max(1, math.floor(self.compute / 2)))

    def cost(self, steps: int) -> int:
        """Denoiser-row equivalents per returned image, at most."""
        return min(self.method.cost(steps), math.floor(self.compute * steps + 1e-9))

    def work(self, steps: int) -> Work:
        """That of the method, with no more rows than the budget has."""
        inner, most = self.method.work(steps), self.cost(steps)
        back = min(inner.backward_rows, most // 2)
        return replace(inner, rows=min(inner.rows, most), backward_rows=back)

    def kl(self, ctx: Context, prompt: int) -> float | None:
        """That of the method."""
        return self.method.kl(ctx, prompt)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """The inner search, as long as there is budget; then the best so far."""
        purse, best = Purse.of(ctx, self.compute), Finished(ctx)
        rows = ctx.images * len(ctx.prompts)
        dearest = max(map(ctx.evaluations, ctx.steps))
        fits = self.method.cost(len(ctx.steps)) * rows * dearest <= purse.limit
        plain = (1 if ctx.spares else ctx.lane_width) * rows * sum(map(ctx.evaluations, ctx.steps))
        if plain > purse.limit:
            raise ValueError(
                f"lane_width={ctx.lane_width} with compute={self.compute!r}: one lane costs "
                f"{plain / rows / len(ctx.steps):g} plain calls; lower lane_width or raise compute"
            )

        def reserve() -> int:
            return 0 if fits or best.complete(start.prompts) else plain

        with ctx.limit(lambda: (purse.limit - purse.spent) / dearest), ctx.judging.watch(best.see):
            winners = yield from purse.spend(self.method(ctx, start), reserve)
        if winners is not None:
            return winners
        ctx.log("budget", compute=self.compute, spent=purse.spent)
        if best.complete(start.prompts):
            return best.population(start.prompts)
        if purse.spent + plain > purse.limit:
            raise SteerError(
                f"compute={self.compute!r}: spent before {self.method!r} finished anything, since "
                f"its lanes are padded (lane_width={ctx.lane_width}); give a lane_width that "
                f"divides {self.method.populations}, or raise compute"
            )
        return (yield from sample_all(ctx, start.take(_first_rows(start, ctx.images))))


@dataclass(eq=False)
class Purse:
    """What may be spent, and what was.

    Attributes:
        ledger: Counts the rows as the pipeline makes them.
        limit: Denoiser-row equivalents of all prompts and images together.
        before: Rows that were made before this run of the method.
        opening: Rows of the pipeline's first denoiser call, which runs before a method asks
            anything. They count from the first query on: as its answer where that asks for the
            first step without a gradient, on top of it elsewhere. 0 once they are counted.
        evaluations: Denoisers that answer one row at a step.
        spares: Whether padding costs nothing.
        recorded: Rows that this run differentiated.
    """

    ledger: Ledger
    limit: float
    before: int
    opening: int
    evaluations: Callable[[Step], int]
    spares: bool = False
    recorded: int = 0

    @classmethod
    def of(cls, ctx: Context, compute: float) -> Purse:
        """For one run of a method."""
        rows = ctx.images * len(ctx.prompts)
        opening = ctx.ledger.denoiser_rows if ctx.ledger.denoiser_calls == 1 else 0
        limit = compute * rows * len(ctx.steps) + 1e-6
        before = ctx.ledger.denoiser_rows
        return cls(ctx.ledger, limit, before, opening, ctx.evaluations, ctx.spares)

    @property
    def spent(self) -> int:
        """Denoiser-row equivalents so far."""
        return self.ledger.denoiser_rows - self.before + 2 * self.recorded

    def price(self, query: Query) -> int:
        """What a query would add."""
        rows = self._rows(query)
        served = query.step.index == 0 and not query.grad
        return rows * (3 if query.grad else 1) + (0 if served else self.opening)

    def _rows(self, query: Query) -> int:
        rows = len(query.slots) if self.spares and query.slots else len(query.latents)
        return rows * self.evaluations(query.step)

    def spend(
        self, search: Search, reserve: Callable[[], int]
    ) -> Generator[Query, Tensor, Population | None]:
        """The search's own result, or `None` where it was closed for lack of budget."""
        try:
            query = next(search)
            while self.spent + self.price(query) + reserve() <= self.limit:
                answer = yield query
                self.before, self.opening = self.before - self.opening, 0
                self.recorded += self._rows(query) if query.grad else 0
                query = search.send(answer)
            return None
        except StopIteration as stop:
            return stop.value
        finally:
            search.close()


@dataclass(eq=False)
class Finished:
    """The finished particles per prompt that may be returned, with their clean latents."""

    ctx: Context
    rows: dict[int, dict[Name, Tensor]] = field(default_factory=dict)

    def see(self, population: Population, values: Tensor) -> None:
        """More of them; where the best are returned, only `ctx.images` per prompt are kept."""
        for name, x in zip(population.ids, population.x.unbind(), strict=True):
            self.rows.setdefault(name[0], {})[name] = x
        if not self.ctx.judging.picking.is_best:
            return
        for prompt, own in self.rows.items():
            names = sorted(own, key=self.ctx.judging.rank)
            self.rows[prompt] = {name: own[name] for name in names[: self.ctx.images]}

    def complete(self, prompts: Sequence[int]) -> bool:
        """Whether every prompt has as many as it shall return."""
        return all(len(self.rows.get(prompt, ())) >= self.ctx.images for prompt in prompts)

    def population(self, prompts: Sequence[int]) -> Population:
        """What is returned, prompt by prompt."""
        names = [name for prompt in prompts for name in self.rows[prompt]]
        values = [self.ctx.judging.final(name) for name in names]
        names = [names[row] for row in self.ctx.judging.pick(names, values, self.ctx.images)]
        return Population(torch.stack([self.rows[n[0]][n] for n in names]), tuple(names))


def _first_rows(start: Population, images: int) -> list[int]:
    rows = rows_by_prompt(start.ids)
    return [row for own in rows.values() for row in own[:images]]
