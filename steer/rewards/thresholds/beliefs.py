"""A Gaussian law that is not known, and what one more draw from it is expected to add."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from steer.rewards.thresholds.scores import Floats


@dataclass(frozen=True)
class Belief:
    """Values as Gaussian draws, of a mean and a variance that are not known.

    A normal-inverse-gamma belief: `variance ~ InvGamma(shape, scale)`, `mean ~ N(centre, variance /
    weight)`. The next value then has a t distribution of `2 shape` degrees of freedom. The
    default is the reference prior `p(mean, variance) = 1 / variance`: after n values it predicts
    by their own mean and standard deviation, with n - 1 degrees of freedom.

    Attributes:
        centre: Expected mean.
        weight: How many values the belief about the mean is worth.
        shape, scale: Of the variance's law.
    """

    centre: float = 0.0
    weight: float = 0.0
    shape: float = -0.5
    scale: float = 0.0

    def after(self, values: Sequence[float] | Floats) -> Belief:
        """The belief once these values were seen, `(n,)`: the conjugate update."""
        n = len(values)
        if not n:
            return self
        seen = np.asarray(values, dtype=np.float64)
        mean = float(seen.mean())
        weight, off = self.weight + n, mean - self.centre
        between = self.weight * n / weight * off * off
        return Belief(
            centre=self.centre + n / weight * off,
            weight=weight,
            shape=self.shape + n / 2,
            scale=self.scale + (float(((seen - mean) ** 2).sum()) + between) / 2,
        )

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the next value's t distribution."""
        return 2 * self.shape

    @property
    def spread(self) -> float:
        """The scale of that distribution; for more than no freedom."""
        return math.sqrt(self.scale * (1 + 1 / self.weight) / self.shape)

    @property
    def sd(self) -> float:
        """The root of the expected variance; for more than two degrees of freedom."""
        return math.sqrt(self.scale / (self.shape - 1))

    def below(self, values: Sequence[float] | Floats) -> Floats:
        """`P(next value < v)` for every v, float64 in [0, 1]; for more than no freedom."""
        away = np.asarray(values, dtype=np.float64) - self.centre
        return stdtr(self.freedom, away / self.spread)

    def gain(self, levels: Sequence[float] | Floats) -> Floats:
        """`E max(v - level, 0)` of the next value v, for every level, float64.

        Infinite while too little is known: at one degree of freedom or less.
        """
        above = np.asarray(levels, dtype=np.float64) - self.centre
        if self.freedom <= 1:
            return np.full_like(above, math.inf)
        spread = self.spread
        if spread == 0:
            return np.maximum(-above, 0.0)
        return spread * _above(above / spread, self.freedom)


def _above(z: Floats, freedom: float) -> Floats:
    """`E max(t - z, 0)` of a t variable of more than one degree of freedom."""
    log_constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    log_constant -= math.log(freedom * math.pi) / 2
    density = np.exp(log_constant - (freedom + 1) / 2 * np.log1p(z * z / freedom))
    return density * (freedom + z * z) / (freedom - 1) - z * stdtr(freedom, -z)
