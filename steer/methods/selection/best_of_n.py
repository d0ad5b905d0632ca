"""Best of N: sample N particles to the end, keep the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steer.core.checks import whole
from steer.core.types import Population, Search
from steer.search.context import Context
from steer.search.method import Method, kl_of_draws


@dataclass(frozen=True)
class BestOfN(Method):
    """Sample `n` particles per image with the pipeline's own solver and return the best.

    The random search of Ma et al. 2025, "Inference-time scaling for diffusion models beyond
    scaling denoising steps" (arXiv:2501.09732). The first particles are the plain call's own, so
    the result is never worse than the plain image under the reward; `BestOfN(1)` is the plain
    call, bit for bit.

    Args:
        n: Particles per returned image, at least 1.

    Raises:
        ValueError: `n` is not a positive whole number.
    """

    needs_loop = False

    n: int

    def __post_init__(self) -> None:
        whole("n", self.n, "BestOfN(4)")

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image."""
        return self.n * steps

    def rows_at(self, steps: int, indices: Sequence[int]) -> int:
        """Denoiser rows per returned image at some of the steps."""
        return self.n * len(indices)

    def kl(self, ctx: Context, prompt: int) -> float | None:
        """That of the call's pick among all draws."""
        return kl_of_draws(ctx, prompt)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """A lane at a time: all of its steps, then the next lane."""
        finished = []
        for part in ctx.groups(start):
            done = yield from ctx.sample(part)
            if self.n > 1:
                ctx.evaluate(done)
            finished.append(done)
        return ctx.winners(Population.join(finished))
