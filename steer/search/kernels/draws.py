"""What a population moves by when every step draws fresh noise: kernels, proposals, corrections.

A *kernel* is the law that counts as the model's own: the pipeline's scheduler where that is
stochastic, else a move with fresh noise on the pipeline's own grid (`Rho`). A *proposal* is any
other move made in its place; particles are then weighted by the ratio of the two densities at the
point that was drawn, so that the weighted population still follows the kernel's law.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from steer.core.types import Move, Population, Query, Step, wide
from steer.search.context import Context


Moving: TypeAlias = Move | Generator[Query, Tensor, Move]
"""A move, or a generator that asks the denoiser further questions before it returns one."""


class Kernel(Protocol):
    """A reverse step as a distribution; proposals have the same signature.

    Attributes:
        grad: Optional. True asks for a recorded denoiser call: gradients of what is computed from
            `output` reach `population.x`.
    """

    def __call__(self, ctx: Context, step: Step, population: Population, output: Tensor) -> Moving:
        """The move of every row from `step` to its next point, given the denoiser's output."""
        ...


@runtime_checkable
class Shift(Protocol):
    """A proposal that is made of the kernel's own move, whatever the kernel."""

    def shift(
        self, base: Move, ctx: Context, step: Step, population: Population, output: Tensor
    ) -> Moving:
        """The move of every row to draw from; `base` is the kernel's."""
        ...


@dataclass(frozen=True, eq=False)
class Draw:
    """A move to sample from, and the kernel's own move, which the importance weight refers to.

    Both are the same where there is no proposal.

    Raises:
        ValueError: A proposal without noise at a step where the kernel has some.
    """

    base: Move
    move: Move

    def __post_init__(self) -> None:
        if self.move.std <= 0 < self.base.std:
            raise ValueError(
                "proposal: returned a move without noise (std=0) where the kernel's has "
                f"std={self.base.std:.4g}; no weight can correct that: return a move with noise"
            )

    def detach(self) -> Draw:
        """Without gradients."""
        return self._map(Tensor.detach)

    def take(self, rows: Sequence[int]) -> Draw:
        """The moves of these rows."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.base.mean.device)
        return self._map(lambda value: value[index])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Draw:
        moves = [self.base] if self.move is self.base else [self.base, self.move]
        new = [Move(change(move.mean), move.std, change(move.x0)) for move in moves]
        return Draw(new[0], new[-1])

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """The points drawn with this noise, and log p - log q there.

        At a step without noise the kernel's own move is made, as no weight could correct another.

        Args:
            noise: Standard normal, `(rows, *latent)`.

        Returns:
            Points in the latents' dtype, and `(rows,)` float64 log-weights, `None` for zeros.
        """
        if self.base.std == 0:
            return self.base.mean, None
        x = wide(self.move.mean) + self.move.std * noise
        x = x.to(self.move.mean.dtype)
        if self.move is self.base:
            return x, None
        z = noise.double().flatten(1)
        shift = (self.move.mean.double() - self.base.mean.double()).flatten(1)
        other = (shift + self.move.std * z) / self.base.std
        ratio = 0.5 * ((z - other) * (z + other)).sum(1)
        return x, ratio + z.shape[1] * math.log(self.move.std / self.base.std)


def finish_move(moving: Moving) -> Generator[Query, Tensor, Move]:
    """The move of a kernel, whether it asked questions or not."""
    if isinstance(moving, Move):
        return moving
    return (yield from moving)


def ask_denoiser(
    ctx: Context, population: Population, step: Step, grad: bool
) -> Generator[Query, Tensor, tuple[Population, Tensor]]:
    """The denoiser's output, recorded where a kernel needs gradients through it."""
    if not grad:
        return population, (yield from ctx.denoise(population, step))
    here = population.at(population.x.detach().requires_grad_())
    return here, (yield from ctx.denoise(here, step, grad=True))


def draw_move(
    ctx: Context,
    kernel: Kernel,
    proposal: Kernel | None,
    step: Step,
    here: Population,
    output: Tensor,
) -> Generator[Query, Tensor, Draw]:
    """A kernel's move, to be drawn from the proposal where there is one; without gradients."""
    base = yield from finish_move(kernel(ctx, step, here, output))
    if proposal is None:
        return Draw(base, base).detach()
    if isinstance(proposal, Shift):
        moving = proposal.shift(base, ctx, step, here, output)
    else:
        moving = proposal(ctx, step, here, output)
    move = yield from finish_move(moving)
    return Draw(base, move).detach()
