"""The reward's gradient as a part of the fresh noise: a kernel that leaves the mean alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from steer.core.checks import positive, whole
from steer.core.spectrum import whiten
from steer.core.sphere import unit
from steer.core.types import Move, Step, wide
from steer.core.when import When, every
from steer.search.kernels.uphill import GradientMove, Through


_ALWAYS = every(1)


@dataclass(frozen=True)
class NoiseTilt(GradientMove):
    """A DDIM move whose fresh noise leans up the reward: `SMC(n, kernel=NoiseTilt())`.

        x' = mu + std (sqrt(1 - a^2) z + a G),    G = sqrt(d) grad / |grad|

    with a = `strength` and d numbers per row. The clean prediction is not touched, and what takes
    the place of the noise has the norm of noise: d on average for any a, with a spread no larger
    than that of |z| (noise-tilted reverse kernel, 2026, arXiv:2606.18066, as we understand it: its
    whitening was not to be had). With `block` the spectrum of G is made flat as well, every block
    of frequencies as strong as in white noise.

    As a `kernel` it is a law of its own: one trajectory follows the gradient, several compete. As
    `SMC(proposal=...)` it is corrected; the weights then pay a^2 d / 2 nats a step and more, so
    that this is for toys.

    Args:
        strength: a, in (0, 1): the cosine of the fresh noise with the gradient.
        block: Numbers per block of frequencies in which G has the strength of white noise; `None`
            leaves its spectrum as it is.
        through: As in `GradientProposal`: `"x0"` costs no denoiser row, `"denoiser"` two per row,
            `"map"` three.
        eta: Share of fresh noise where it is the kernel itself; as a proposal it takes the noise of
            the filter's kernel.
        when: Steps at which the noise is tilted.

    Raises:
        ValueError: Arguments of the wrong kind.
        RewardError: When called: the reward is not differentiable.
        GradientError: When called: a gradient that is not finite.
        UnsupportedPipelineError: When called: `through="map"` on a model that is no flow map, or
            from whose denoiser no gradient comes back.
    """

    strength: float = 0.1
    block: int | None = None
    through: Through = "x0"
    eta: float = 1.0
    when: When = _ALWAYS

    def __post_init__(self) -> None:
        positive("strength", self.strength, 1.0, none=False)
        if self.block is not None:
            whole("block", self.block, "NoiseTilt(strength=0.1, block=64)")
        self.check_settings()

    def changed(self, base: Move, step: Step, gradient: Tensor) -> Move:
        """The kernel's move with its noise turned towards the gradient."""
        return tilt_noise(base, gradient, self.strength, self.block)


def tilt_noise(move: Move, gradient: Tensor, strength: float, block: int | None = None) -> Move:
    """`move` with its fresh noise turned towards `gradient`; see `NoiseTilt`.

    Args:
        move: With noise.
        gradient: `(rows, *latent)`; rows of zeros lose `strength`^2 of their noise's variance.
        strength: Cosine, in [0, 1).
        block: As in `NoiseTilt`.
    """
    lean = math.sqrt(gradient[0].numel()) * unit(gradient)
    if block is not None:
        lean = whiten(lean, block)
    mean = wide(move.mean) + (move.std * strength) * lean
    return Move(mean.to(move.mean.dtype), move.std * math.sqrt(1 - strength**2), move.x0)
