"""What a prompt's next candidate is expected to add, in the reward's own units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri

from steer.rewards.thresholds.beliefs import Belief
from steer.rewards.thresholds.scores import Floats


_FAR = 50.0  # normal scores, from which on nothing is expected
_CERTAIN = 1e-9  # spreads below this share of the price are none


@dataclass(frozen=True)
class NormalScores:
    """A rising, piecewise linear map under which rewards are standard Gaussian.

    Attributes:
        knots: Rewards at evenly spaced quantiles, `(i + 1/2) / len(knots)`; below the first and
            above the last, the map goes on as straight lines. Empty for no map at all.
    """

    knots: tuple[float, ...] = ()

    @classmethod
    def fit(cls, rewards: Floats, count: int) -> NormalScores:
        """The map of these rewards, with at most `count` knots; none where knots coincide."""
        count = min(count, len(rewards) // 2)
        knots = np.quantile(rewards, (np.arange(count) + 0.5) / count) if count > 1 else []
        rises = len(knots) > 1 and bool((np.diff(knots) > 0).all())
        return cls(tuple(map(float, knots)) if rises else ())

    def of(self, rewards: Sequence[float] | Floats) -> Floats:
        """Rewards as scores, float64."""
        values = np.asarray(rewards, dtype=np.float64)
        return np.interp(values, *self._line) if self.knots else values

    def rewards(self, scores: Sequence[float] | Floats) -> Floats:
        """Scores as rewards, float64."""
        values = np.asarray(scores, dtype=np.float64)
        return np.interp(values, self._line[1], self._line[0]) if self.knots else values

    @cached_property
    def _line(self) -> tuple[Floats, Floats]:
        """Rewards and scores at the knots, and at a point far out on either side."""
        x = np.asarray(self.knots)
        y = ndtri((np.arange(len(x)) + 0.5) / len(x))
        first, last = (x[1] - x[0]) / (y[1] - y[0]), (x[-1] - x[-2]) / (y[-1] - y[-2])
        x = np.concatenate([[x[0] - first * _FAR], x, [x[-1] + last * _FAR]])
        return x, np.concatenate([[y[0] - _FAR], y, [y[-1] + _FAR]])

    def slopes(self, above: float) -> tuple[Floats, Floats]:
        """Where straight pieces begin from a score on, and rewards per score along them."""
        if not self.knots:
            return np.array([above]), np.ones(1)
        x, y = self._line
        slopes = np.diff(x) / np.diff(y)
        piece = max(int(np.searchsorted(y, above, side="right")) - 1, 0)
        piece = min(piece, len(slopes) - 1)
        return np.concatenate([[above], y[piece + 1 : -1]]), slopes[piece:]


@dataclass(frozen=True)
class Outlook:
    """A belief about the normal scores of a prompt's rewards.

    Attributes:
        belief: About the scores.
        scores: From rewards to scores.
    """

    belief: Belief = field(default_factory=Belief)
    scores: NormalScores = field(default_factory=NormalScores)

    def after(self, rewards: Sequence[float]) -> Outlook:
        """The outlook once these rewards of the prompt were seen.

        Of the rewards, the upper half counts, and its mirror image for the lower: how bad failures
        are does not say how good the best can get.
        """
        return Outlook(self.belief.after(upper_half(self.scores.of(rewards))), self.scores)

    def gain(self, level: float) -> float:
        """`E max(r - level, 0)` of the next reward r: what it adds to a best so far of `level`.

        Exact for the t predictive: the map is straight between knots. Infinite while too little
        is known.
        """
        if self.belief.freedom <= 1 or level == -math.inf:
            return math.inf
        starts, slopes = self.scores.slopes(float(self.scores.of([level])[0]))
        gains = self.belief.gain(starts)
        return float(slopes @ (gains - np.append(gains[1:], 0.0)))

    def reservation(self, price: float) -> float:
        """The level at which one more candidate is worth its price: `gain(level) = price`.

        Weitzman's reservation price (1979, "Optimal search for the best alternative"): with a known
        law, it is optimal to draw until the best so far reaches it.

        Args:
            price: In the reward's own units; at 0 or less the level is infinite.
        """
        if price <= 0 or self.belief.freedom <= 1:
            return math.inf
        centre, spread = self.belief.centre, self.belief.spread
        middle, beyond = self.scores.rewards([centre, centre + spread]).tolist()
        if spread <= _CERTAIN * price:
            return middle - price
        low, high, step = middle - price, beyond, max(beyond - middle, price)
        while self.gain(low) < price:
            low -= step
            step *= 2
        while self.gain(high) > price:
            high += step
            step *= 2
        found = brentq(lambda level: self.gain(level) - price, low, high, xtol=1e-9 * step)
        return float(found)  # pyright: ignore[reportArgumentType]


def upper_half(values: Sequence[float] | Floats) -> Floats:
    """The values above their median and their mirror images below it, `(n,)` float64."""
    seen = np.asarray(values, dtype=np.float64)
    if len(seen) < 2:
        return seen
    middle = float(np.median(seen))
    upper = np.sort(seen)[(len(seen) + 1) // 2 :]
    return np.concatenate([upper, 2 * middle - upper, [middle] * (len(seen) % 2)])
