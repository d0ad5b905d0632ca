"""Moves that lean up the reward's gradient: what they share, and the gradient they lean along."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from contextlib import nullcontext
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from steer.core.checks import one_of, predicate, share
from steer.core.ddim import ddim
from steer.core.types import Move, Population, Query, Step, wide
from steer.core.when import When
from steer.search.context import Context
from steer.search.guidance import check_gradient, gradient_behind, record_x0, reward_gradient
from steer.search.maps import check_map, to_clean


Through: TypeAlias = Literal["denoiser", "x0", "map"]
"""What lies between the noisy latents and the reward that is differentiated."""


class GradientMove(ABC):
    """A kernel's own move, changed along the reward's gradient; a `Kernel` and a `Shift`.

    Attributes:
        through: See `gradient_at`.
        eta: Share of fresh noise of the DDIM move where it is the kernel itself.
        when: Steps at which moves are changed.
    """

    through: Through
    eta: float
    when: When

    @abstractmethod
    def changed(self, base: Move, step: Step, gradient: Tensor) -> Move:
        """The kernel's move, which has noise, changed along `(rows, *latent)` gradients."""

    @property
    def grad(self) -> bool:
        """Whether the denoiser's call must be recorded."""
        return self.through == "denoiser"

    def jumps(self, indices: Iterable[int], steps: int) -> int:
        """At how many of these steps of a run a flow map is asked for a recorded jump, at most."""
        if self.through != "map":
            return 0
        found = self.when.indices(steps)
        return sum(index in found and index + 1 < steps for index in indices)

    def check_settings(self) -> None:
        """Raise ValueError for a setting of the wrong kind."""
        one_of("through", self.through, ("denoiser", "x0", "map"))
        share("eta", self.eta, "fresh noise")
        predicate(self.when, "every(1)")

    def check(self, ctx: Context) -> None:
        """Raise unless the call has the gradient.

        Raises:
            RewardError: The reward is not differentiable.
            ValueError: It only ranks candidates.
            UnsupportedPipelineError: `through="map"` on a model that is no flow map.
        """
        check_gradient(ctx, type(self).__name__)
        if self.through == "map":
            check_map(ctx, type(self).__name__, "through")

    def __call__(
        self, ctx: Context, step: Step, population: Population, output: Tensor
    ) -> Generator[Query, Tensor, Move]:
        """As a kernel of its own: the DDIM move of every row, changed."""
        x = population.x
        base = ddim(step, x.detach(), step.x0(x, output).detach(), self.eta)
        return self.shift(base, ctx, step, population, output)

    def shift(
        self, base: Move, ctx: Context, step: Step, population: Population, output: Tensor
    ) -> Generator[Query, Tensor, Move]:
        """The kernel's move of every row, changed; `base` where there is no noise."""
        if base.std == 0 or not self.when(step):
            return base
        gradient = yield from gradient_at(ctx, step, population, output, self.through)
        return self.changed(base, step, gradient)


def gradient_at(
    ctx: Context, step: Step, population: Population, output: Tensor, through: Through
) -> Generator[Query, Tensor, Tensor]:
    """The gradient of r(decode(x0(x))) at noisy latents x, `(rows, *latent)`, float32 at least.

    Args:
        ctx, step, population, output: As a `Kernel` has them.
        through: `"denoiser"` differentiates the call that gave `output`, which is recorded;
            `"map"` has X_{t,1}(x) in the place of x0(x), one recorded jump of a flow map to where
            the latents end; `"x0"` takes alpha / (alpha^2 + sigma^2) for dx0/dx, which is that of
            white data of variance 1.

    Raises:
        RewardError: The scores carry no gradient.
        GradientError: A gradient that is not finite.
        UnsupportedPipelineError: `"map"`, and no gradient comes back from the denoiser.
    """
    if through == "map":
        _, leaf, x0 = yield from record_x0(ctx, to_clean(step), population)
    else:
        leaf = population.x
        with torch.enable_grad() if through == "denoiser" else nullcontext():
            x0 = step.x0(wide(leaf), wide(output))
    if through == "x0":
        _, gradient = reward_gradient(ctx, population.at(x0.detach()))
        return gradient * (step.alpha / (step.alpha**2 + step.sigma**2))
    _, gradient, size = gradient_behind(ctx, step, population, leaf, x0)
    return wide(gradient) * size
