"""How a gradient moves the noise, on the sphere or freely with a regulariser, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.core.checks import positive, whole
from steer.core.rows import per_row
from steer.core.spectrum import whiten
from steer.core.sphere import angles, cap, radius, step_along, tangent, unit
from steer.core.types import Population
from steer.search.context import Context
from steer.search.short_runs import Leash


@dataclass(frozen=True)
class Sphere:
    """Riemannian gradient ascent with momentum on every row's own sphere.

        v <- momentum * P_x v + grad / |grad|,   grad tangential
        x <- |x| * (x + step |x| v) / |x + step |x| v|

    P_x projects onto the tangent space, which carries the momentum from one point to the next. The
    gradient's length is dropped, so the reward's scale does not matter.

    With `block` there is a sphere for every block of frequencies, each with the norm that the start
    has there (`steer.core.spectrum.whiten`): projected gradient ascent on white noise
    (arXiv:2602.08646), which keeps an ascent from gathering energy in a few low frequencies.

    Args:
        step: Length of a step without momentum, as a share of the noise's norm.
        momentum: In [0, 1).
        max_angle: How many degrees the noise may turn from its start; `None` is no limit.
        block: Numbers per block of frequencies, such as 64; `None` for one sphere.

    Raises:
        ValueError: A number out of range.
    """

    step: float = 0.1
    momentum: float = 0.7
    max_angle: float | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        positive("step", self.step, none=False)
        positive("momentum", self.momentum, 1.0, zero=True, none=False)
        positive("max_angle", self.max_angle, 180.0)
        if self.block is not None:
            whole("block", self.block, "Sphere(block=64)")

    def move(
        self, x: Tensor, gradient: Tensor, velocity: Tensor | None, start: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """The next point and its velocity, all `(rows, *latent)`; `scale` is not needed."""
        fresh = unit(tangent(x, gradient))
        if velocity is not None:
            fresh = fresh + self.momentum * tangent(x, velocity)
        x = step_along(x, fresh, self.step)
        if self.block is not None:
            x = whiten(x, self.block, start)
        if self.max_angle is not None:
            x = cap(x, start, self.max_angle * torch.pi / 180)
        return x, fresh


@dataclass(frozen=True)
class ReNO:
    """ReNO's update (Eyring et al. 2024, arXiv:2406.04312), row by row, on unit noise z.

    Minimises `-reward + weight * (|z|^2 / 2 - (d - 1) log |z|)`, whose second part is the negative
    log-density of the norm (a chi distribution), by gradient descent with Nesterov momentum, the
    gradient's norm clipped.

    Args:
        step: Learning rate.
        momentum: Of Nesterov's kind, in [0, 1).
        clip: Largest gradient norm, regulariser included.
        weight: Of the regulariser.

    Raises:
        ValueError: A number out of range.
    """

    step: float = 5.0
    momentum: float = 0.9
    clip: float = 0.1
    weight: float = 0.01

    def __post_init__(self) -> None:
        positive("step", self.step, none=False)
        positive("momentum", self.momentum, 1.0, zero=True, none=False)
        positive("clip", self.clip, none=False)
        positive("weight", self.weight, zero=True, none=False)

    def move(
        self, x: Tensor, gradient: Tensor, velocity: Tensor | None, start: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """The next point and its velocity, all `(rows, *latent)`.

        Args:
            x: Initial latents, `scale * z`.
            gradient: Of the reward at `x`.
            velocity: What the last move returned; `None` at first.
            start: Where the ascent began; not needed.
            scale: Of the pipeline's initial latents.
        """
        z = x / scale
        dimensions = z[0].numel()
        pull = self.weight * (z - (dimensions - 1) * z / radius(z) ** 2)
        loss = pull - scale * gradient
        loss = loss * (self.clip / (radius(loss) + 1e-6)).clamp(max=1.0)
        velocity = loss if velocity is None else self.momentum * velocity + loss
        return scale * (z - self.step * (loss + self.momentum * velocity)), velocity


@dataclass(frozen=True)
class ZeroOrder:
    """A gradient from rewards alone: differences between antithetic points around the noise.

    Args:
        directions: Pairs of points per iteration.
        angle: How far away they are, in degrees.

    Raises:
        ValueError: A number out of range.
    """

    directions: int = 4
    angle: float = 5.0

    def __post_init__(self) -> None:
        whole("directions", self.directions, "ZeroOrder(directions=4, angle=5.0)")
        positive("angle", self.angle, 90.0, none=False)


@dataclass(frozen=True, eq=False)
class Iterate:
    """What one short run came to.

    Attributes:
        x, clean, reward: The best point that was asked for every row, its clean latents
            `(rows, *latent)`, and the reward there `(rows,)`.
        gradient: At the point itself; `None` where nothing follows.
    """

    x: Tensor
    clean: Tensor
    reward: Tensor
    gradient: Tensor | None = None


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
        """Before the first iterate."""
        nothing = torch.full_like(reward, -torch.inf)
        return cls(x, clean, nothing, nothing, patience)

    def offer(self, x: Tensor, clean: Tensor, value: Tensor, reward: Tensor) -> None:
        """One more iterate of every row."""
        better = (value > self.value) & ~self.stopped
        rows = per_row(better, x)
        self.x, self.clean = torch.where(rows, x, self.x), torch.where(rows, clean, self.clean)
        self.value = torch.where(better, value, self.value)
        self.reward = torch.where(better, reward, self.reward)
        self._waited = torch.where(better, 0, self._waited + 1)
        if self.patience is not None:
            self.stopped = self.stopped | (self._waited >= self.patience)


def degrees_between(x: Tensor, start: Tensor) -> list[float]:
    """Angles between rows, in degrees."""
    return [round(float(a), 3) for a in (angles(x, start) * 180 / torch.pi).tolist()]


def tell_iterate(
    ctx: Context,
    part: Population,
    iteration: int,
    found: Iterate,
    monitored: Tensor | None,
    leash: Leash | None,
) -> None:
    """Trace an iterate per prompt: reward and distance from the start, by particle."""
    more = {} if monitored is None else {"monitor": monitored.tolist()}
    if leash is not None:
        more["moved"] = leash.distance(found.clean).tolist()
    turned = degrees_between(found.x, part.x)
    own = {"iteration": iteration, "reward": found.reward.tolist(), "angle": turned}
    ctx.tell("iterate", part.ids, None, **own, **more)
