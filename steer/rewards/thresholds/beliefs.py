"""What is believed of a prompt's rewards, and what one more candidate is expected to add."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr


@dataclass(frozen=True)
class Belief:
    """Rewards of a prompt as Gaussian draws, of a mean and a variance that are not known.

    A normal-inverse-gamma belief: `variance ~ InvGamma(shape, scale)`, `mean ~ N(centre, variance /
    weight)`. The next reward then has a t distribution of `2 shape` degrees of freedom. The
    default is the reference prior `p(mean, variance) = 1 / variance`: after n rewards it predicts
    by their own mean and standard deviation, with n - 1 degrees of freedom.

    Attributes:
        centre: Expected mean.
        weight: How many rewards the belief about the mean is worth.
        shape, scale: Of the variance's law.
    """

    centre: float = 0.0
    weight: float = 0.0
    shape: float = -0.5
    scale: float = 0.0

    def after(self, rewards: Sequence[float]) -> Belief:
        """The belief once these rewards were seen: the conjugate update."""
        n = len(rewards)
        if not n:
            return self
        values = np.asarray(rewards, dtype=np.float64)
        mean = float(values.mean())
        weight, off = self.weight + n, mean - self.centre
        between = self.weight * n / weight * off * off
        return Belief(
            centre=self.centre + n / weight * off,
            weight=weight,
            shape=self.shape + n / 2,
            scale=self.scale + (float(((values - mean) ** 2).sum()) + between) / 2,
        )

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the next reward's t distribution."""
        return 2 * self.shape

    @property
    def spread(self) -> float:
        """The scale of that distribution."""
        return math.sqrt(self.scale * (1 + 1 / self.weight) / self.shape)

    def gain(self, level: float) -> float:
        """`E max(r - level, 0)` of the next reward r: what it adds to a best so far of `level`.

        Infinite while too little is known: at one degree of freedom or less.
        """
        if self.freedom <= 1:
            return math.inf
        spread = self.spread
        if spread == 0:
            return max(self.centre - level, 0.0)
        return spread * _above((level - self.centre) / spread, self.freedom)

    def tail(self, level: float) -> float:
        """The probability that the next reward is above `level`, of more than no freedom."""
        if self.spread == 0:
            return float(self.centre > level)
        return float(stdtr(self.freedom, (self.centre - level) / self.spread))

    def reservation(self, price: float) -> float:
        """The level at which one more candidate is worth its price: `gain(level) = price`.

        Weitzman's reservation price (1979, "Optimal search for the best alternative"): with a known
        law, it is optimal to draw until the best so far reaches it.

        Args:
            price: In the reward's own units; infinite level at 0.
        """
        if price <= 0 or self.freedom <= 1:
            return math.inf
        low = self.centre - price  # the gain is at least centre - level
        step = self.spread
        if step == 0:
            return low
        while self.gain(low + step) > price:
            step *= 2
        found = brentq(lambda level: self.gain(level) - price, low, low + step, xtol=1e-12)
        return float(found)  # pyright: ignore[reportArgumentType]


def _above(z: float, freedom: float) -> float:
    """`E max(t - z, 0)` of a t variable of more than one degree of freedom."""
    log_constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    log_constant -= math.log(freedom * math.pi) / 2
    density = math.exp(log_constant - (freedom + 1) / 2 * math.log1p(z * z / freedom))
    return density * (freedom + z * z) / (freedom - 1) - z * float(stdtr(freedom, -z))
