"""How a gradient moves the noise: on the sphere, or freely with a regulariser; and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from steer.core.sphere import angles, cap, radius, step_along, tangent, unit
from steer.core.types import Population
from steer.search.context import Context


_USUAL = {"sphere": (0.1, 0.7), "reno": (5.0, 0.9)}
"""Step and momentum by variant."""


@dataclass(eq=False)
class SphereAscent:
    """Riemannian gradient ascent with momentum on every row's own sphere.

        v <- momentum * P_x v + grad / |grad|,   grad tangential
        x <- |x| * (x + step |x| v) / |x + step |x| v|

    P_x projects onto the tangent space, which carries the momentum from one point to the next. The
    gradient's length is dropped, so the reward's scale does not matter.
    """

    step: float
    momentum: float
    _velocity: Tensor | None = None

    def __call__(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The next point; both `(rows, *latent)`."""
        velocity = unit(tangent(x, gradient))
        if self._velocity is not None:
            velocity = velocity + self.momentum * tangent(x, self._velocity)
        self._velocity = velocity
        return step_along(x, velocity, self.step)


@dataclass(eq=False)
class ReNOAscent:
    """ReNO's update (Eyring et al. 2024, arXiv:2406.04312), row by row, on unit noise z.

    Minimises `-reward + weight * (|z|^2 / 2 - (d - 1) log |z|)`, whose second part is the negative
    log-density of the norm (a chi distribution), by gradient descent with Nesterov momentum, the
    gradient's norm clipped.

    Args:
        step: Learning rate.
        momentum: Of Nesterov's kind.
        clip: Largest gradient norm, regulariser included.
        weight: Of the regulariser.
        scale: The pipeline's initial latents are `scale * z`.
    """

    step: float
    momentum: float
    clip: float
    weight: float
    scale: float
    _velocity: Tensor | None = None

    def __call__(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The next point; both `(rows, *latent)`."""
        z = x / self.scale
        dimensions = z[0].numel()
        pull = self.weight * (z - (dimensions - 1) * z / radius(z) ** 2)
        loss = pull - self.scale * gradient
        loss = loss * (self.clip / (radius(loss) + 1e-6)).clamp(max=1.0)
        velocity = loss if self._velocity is None else self.momentum * self._velocity + loss
        self._velocity = velocity
        return self.scale * (z - self.step * (loss + self.momentum * velocity))


@dataclass(eq=False)
class Best:
    """The best iterate of every row, and which rows have stopped.

    Attributes:
        x, clean: Its initial and its clean latents, `(rows, *latent)`.
        value, reward: What it was chosen by, and the reward there, `(rows,)`.
        stopped: Rows without a new best for `patience` iterations; they keep what they have.
    """

    x: Tensor
    clean: Tensor
    value: Tensor
    reward: Tensor
    patience: int | None = None
    stopped: Tensor = field(init=False)
    _waited: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.stopped = torch.zeros_like(self.value, dtype=torch.bool)
        self._waited = torch.zeros_like(self.value, dtype=torch.long)

    @classmethod
    def before(cls, x: Tensor, clean: Tensor, reward: Tensor, patience: int | None) -> Best:
        """Nothing found yet."""
        nothing = torch.full_like(reward, -torch.inf)
        return cls(x, clean, nothing, nothing, patience)

    def offer(self, x: Tensor, clean: Tensor, value: Tensor, reward: Tensor) -> None:
        """One more iterate of every row."""
        better = (value > self.value) & ~self.stopped
        rows = better.view(-1, *(1,) * (x.ndim - 1))
        self.x, self.clean = torch.where(rows, x, self.x), torch.where(rows, clean, self.clean)
        self.value = torch.where(better, value, self.value)
        self.reward = torch.where(better, reward, self.reward)
        self._waited = torch.where(better, 0, self._waited + 1)
        if self.patience is not None:
            self.stopped = self.stopped | (self._waited >= self.patience)


def ascent(
    variant: Literal["sphere", "reno"],
    step: float | None,
    momentum: float | None,
    clip: float,
    weight: float,
    scale: float,
) -> SphereAscent | ReNOAscent:
    """The ascent of that name; steps and momenta that are `None` are the variant's own."""
    usual = _USUAL[variant]
    step = usual[0] if step is None else step
    momentum = usual[1] if momentum is None else momentum
    if variant == "sphere":
        return SphereAscent(step, momentum)
    return ReNOAscent(step, momentum, clip, weight, scale)


def within(x: Tensor, start: Tensor, degrees: float | None) -> Tensor:
    """`x`, no further than so many degrees from `start`; anywhere for `None`."""
    return x if degrees is None else cap(x, start, degrees * torch.pi / 180)


def degrees_between(x: Tensor, start: Tensor) -> list[float]:
    """Angles between rows, in degrees."""
    return [round(float(a), 3) for a in (angles(x, start) * 180 / torch.pi).tolist()]


def tell_iterate(
    ctx: Context,
    part: Population,
    iteration: int,
    reward: Tensor,
    monitored: Tensor | None,
    x: Tensor,
) -> None:
    """Trace an iterate per prompt: reward and distance from the start, by particle."""
    more = {} if monitored is None else {"monitor": monitored.tolist()}
    turned = degrees_between(x, part.x)
    own = {"iteration": iteration, "reward": reward.tolist(), "angle": turned}
    ctx.tell("iterate", part.ids, None, **own, **more)
