"""What a method is: a search that asks the pipeline's denoiser through queries."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from steer.core.checks import plain_calls
from steer.core.costs import ROWS, Costs, Work, check_costs
from steer.core.divergence import kl_of_best
from steer.core.types import Population, Search
from steer.search.context import Context


class Method(ABC):
    """A search over particles. A method is a frozen dataclass with this base class.

    Its repr is its reproducible configuration. Every method has a `cost` and a `__call__` of its
    own; what else the pipeline asks for has a default here.

    Attributes:
        n: Particles per returned image, for methods that have such a number.
        reorders: Whether rows change places between steps; caches of activations per row cannot
            follow then.
        needs_loop: Whether it looks into the pipeline's loop. One that does not only compares
            finished images of independent draws, so that it can also call the pipeline again for
            each, where a loop cannot be searched.
    """

    n: Any
    reorders: ClassVar[bool] = False
    needs_loop: ClassVar[bool] = True

    @property
    def populations(self) -> tuple[int, ...]:
        """How many particles per returned image run side by side, in every phase of the search.

        The first entry is the number that the search starts with. By default that is `n`, from the
        first step to the last. Where padding costs, the lane width is chosen to divide all entries.
        """
        return self.n if isinstance(self.n, tuple) else (self.n,)

    @property
    def widest(self) -> int:
        """Particles per returned image that one lane may hold: those that are of use together."""
        return max(self.populations)

    @property
    def draws(self) -> int:
        """Particles per returned image that are drawn in all, at most.

        More than the first population where later rounds draw further ones.
        """
        return self.populations[0]

    @abstractmethod
    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, at most; a plain call costs `steps`.

        A row that is differentiated counts two more.
        """

    def work(self, steps: int) -> Work:
        """What it spends per returned image, at most: rows, decodes, scores, gradients.

        The default is for methods that score all that they draw, once, at the end.
        """
        return Work.best_of(self.cost(steps), self.draws)

    def rows_at(self, steps: int, indices: Sequence[int]) -> int:
        """Denoiser rows per returned image at some of the steps, at most; all of them unless known.

        Args:
            steps: Of a plain call.
            indices: Of the steps.
        """
        return self.cost(steps) if indices else 0

    def kl(self, ctx: Context, prompt: int) -> float | None:
        """How far the search moved a prompt's images from the plain sampler, when it is over.

        Returns:
            An upper estimate of the KL per returned image in nats; `None` where there is no formula
            for what the method does, as by default.
        """
        return None

    def suits(self, ctx: Context) -> bool:
        """Whether the call's solver allows it; what it does not suit is not planned."""
        return True

    @abstractmethod
    def __call__(self, ctx: Context, start: Population) -> Search:
        """Search from `start` and return the winners.

        Args:
            ctx: All that the method may touch.
            start: Initial latents, `populations[0] * ctx.images` particles for every prompt that
                is searched (a gate may leave out prompts that are done).

        Returns:
            The winners: `ctx.images` rows per prompt of `start`, best first where they were
            selected, in their own order where nothing was.
        """

    @classmethod
    def for_compute(cls, compute: float, steps: int, costs: Costs = ROWS) -> Self:
        """The method as large as `compute` plain calls of `steps` steps pay for.

        The default is for methods that need nothing but `n`.

        Args:
            compute: Plain calls, at least 1.
            steps: Denoiser calls of a plain call.
            costs: What a row, a decode, a score cost; by default rows alone count.

        Raises:
            ValueError: `compute` below 1, or a method whose arguments have to be written out.
        """
        plain_calls(compute)
        check_costs(costs)
        names = inspect.signature(cls).parameters
        needed = [name for name, value in names.items() if value.default is value.empty]
        if next(iter(names), None) != "n" or needed not in ([], ["n"]):
            raise ValueError(
                f"{cls.__name__}: compute does not say what it is made of; write its arguments out "
                f"({', '.join(names)}), as in 'Gate(BestOfN(4), threshold=0.6)'"
            )
        made: Any = cls
        return made(costs.most(lambda n: made(n).work(steps), compute, steps))


class Around(Method):
    """A method that runs another one, with its populations.

    Attributes:
        method: The one inside.
    """

    method: Method

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes of the method inside."""
        return self.method.populations

    @property
    def widest(self) -> int:
        """Of the method inside."""
        return self.method.widest

    @property
    def draws(self) -> int:
        """Particles per returned image that the method inside draws."""
        return self.method.draws

    def rows_at(self, steps: int, indices: Sequence[int]) -> int:
        """Of the method inside."""
        return self.method.rows_at(steps, indices)

    def suits(self, ctx: Context) -> bool:
        """Whether the call's solver allows the method inside."""
        return self.method.suits(ctx)

    @property
    def reorders(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the method inside changes the places of rows."""
        return self.method.reorders


def check_method(name: str, value: object, example: str) -> None:
    """Raise ValueError unless `value` is a method."""
    if not isinstance(value, Method):
        raise ValueError(f"{name}={value!r}: must be a method; write {example}")


def kl_of_draws(ctx: Context, prompt: int) -> float:
    """The KL of a method that does no more than choose among its draws; see `Method.kl`."""
    started = {k for row in ctx.trace.of("start", prompt) for k in row["particle"]}
    among, kl = ctx.judging.picking.latest.get(prompt, (0, 0.0))
    return kl if among == len(started) else kl_of_best(len(started), ctx.images)
