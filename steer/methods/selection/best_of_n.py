"""Best of N: sample N particles to the end, keep the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steer.core.checks import whole
from steer.core.errors import UnsupportedPipelineError
from steer.core.types import Population, Search
from steer.search.context import Context
from steer.search.method import Method, kl_of_draws
from steer.search.short_runs import run, short_grid


@dataclass(frozen=True)
class BestOfN(Method):
    """Sample `n` particles per image with the pipeline's own solver and return the best.

    The random search of Ma et al. 2025, "Inference-time scaling for diffusion models beyond
    scaling denoising steps" (arXiv:2501.09732). The first particles are the plain call's own, so
    the result is never worse than the plain image under the reward; `BestOfN(1)` is the plain
    call, bit for bit.

    With `strides` every candidate is a *short run*: that many denoiser calls and not all, by DDIM
    steps between evenly spread points of the pipeline's own grid to clean latents. So many more are
    drawn for the same rows, where the pipeline draws nearly as well in fewer steps. What is
    returned is a short run's own image; the plain image is not among them.

    Args:
        n: Particles per returned image, at least 1.
        strides: Denoiser calls per particle; `None` for every step. Where the call makes no more
            than that, every one is a stride.

    Raises:
        ValueError: Numbers that are not positive whole ones.
        UnsupportedPipelineError: When called: `strides` where the loop ends before the noise does.
    """

    n: int
    strides: int | None = None

    def __post_init__(self) -> None:
        whole("n", self.n, "BestOfN(4)")
        if self.strides is not None:
            whole("strides", self.strides, "BestOfN(8, strides=10)")

    def __repr__(self) -> str:
        """As it is written; strides are named where there are any."""
        strides = "" if self.strides is None else f", strides={self.strides}"
        return f"BestOfN(n={self.n}{strides})"

    @property
    def needs_loop(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether particles take fewer steps than the pipeline's own."""
        return self.strides is not None

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image."""
        return self.n * self._calls(steps)

    def rows_at(self, steps: int, indices: Sequence[int]) -> int:
        """Denoiser rows per returned image at some of the steps; strides may skip them."""
        return self.n * min(len(indices), self._calls(steps))

    def _calls(self, steps: int) -> int:
        return steps if self.strides is None else min(self.strides, steps)

    def kl(self, ctx: Context, prompt: int) -> float | None:
        """That of the call's pick among all draws."""
        return kl_of_draws(ctx, prompt)

    def suits(self, ctx: Context) -> bool:
        """Whether the loop ends in clean data, as short runs do."""
        return self.strides is None or ctx.clean is None

    def __call__(self, ctx: Context, start: Population) -> Search:
        """A lane at a time: all of its steps, then the next lane."""
        if self.strides is not None:
            start = _rename(ctx, start)
        finished = []
        for part in ctx.groups(start):
            if self.strides is None:
                done = yield from ctx.sample(part)
            else:
                grid = short_grid(ctx.steps, self.strides)
                done = part.at((yield from run(ctx, part, grid, part.x.dtype)).to(part.x.dtype))
            if self.n > 1:
                ctx.evaluate_lanes(done)
            finished.append(done)
        return ctx.winners(Population.join(finished))


def _rename(ctx: Context, start: Population) -> Population:
    """The same noises under new names: a particle's own name stands for all of its steps."""
    if ctx.clean is not None:
        raise UnsupportedPipelineError(
            "BestOfN(strides=...): short runs end in clean latents, and this call's loop ends "
            "before the noise does (denoising_end); leave strides out"
        )
    made = ctx.starts.adopt(start.x, [prompt for prompt, _ in start.ids])
    ctx.tell_descent("select", made.ids, None, start.ids)
    return made
