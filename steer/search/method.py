"""What a method is: a search that asks the pipeline's denoiser through queries."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from steer.core.types import Population, Search
from steer.search.context import Context


@runtime_checkable
class Method(Protocol):
    """A search: a frozen dataclass whose repr is its reproducible configuration."""

    @property
    def populations(self) -> tuple[int, ...]:
        """Every population size that it runs at, per returned image, the first one first.

        Lanes whose width divides all of them waste no denoiser rows.
        """
        ...

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, at most; a plain call costs `steps`."""
        ...

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
        ...
