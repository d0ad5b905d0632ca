"""Picks by rank: the best, or a place a little below the top."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steer.core.checks import positive
from steer.core.divergence import kl_of_best, kl_of_rank
from steer.search.picks.base import Candidates, Pick, best_first


@dataclass(frozen=True)
class Best(Pick):
    """The highest rewards; ties go to the earlier candidate."""

    def choose(self, candidates: Candidates, count: int) -> list[int]:
        """The `count` best, best first."""
        return best_first(candidates.rewards)[:count]

    def kl(self, candidates: Candidates, count: int) -> float:
        """That of the best of n."""
        return kl_of_best(len(candidates), count)


@dataclass(frozen=True)
class Quantile(Pick):
    """The candidate at a quantile of the rewards, and those below it where several are returned.

    A reward is fooled by few candidates, and those come first: of many candidates the one at the
    90th percentile is nearly as good by the reward, and seldom a fooling one. With `n_eff` the
    quantile is `1 - 1 / n_eff`: up to `n_eff` candidates that is the best, beyond it the pick is
    as greedy as best-of-`n_eff` however many there are.

    The place is `ceil(q (n - 1))` of n candidates, from 0 for the worst to n - 1 for the best.

    Args:
        n_eff: As greedy as best-of-so-many, at least 1.
        q: The quantile itself in [0, 1], instead.

    Raises:
        ValueError: Both or neither, or a number out of its range.
    """

    n_eff: float | None = None
    q: float | None = None

    def __post_init__(self) -> None:
        if (self.n_eff is None) == (self.q is None):
            raise ValueError(
                f"n_eff={self.n_eff!r} and q={self.q!r}: give one of them, as in Quantile(n_eff=8)"
            )
        positive("n_eff", self.n_eff)
        positive("q", self.q, zero=True)
        if self.n_eff is not None and self.n_eff < 1:
            raise ValueError(f"n_eff={self.n_eff!r}: at least 1, as in Quantile(n_eff=8)")
        if self.q is not None and self.q > 1:
            raise ValueError(f"q={self.q!r}: a share of the candidates, at most 1")

    def choose(self, candidates: Candidates, count: int) -> list[int]:
        """The candidate at the quantile and the next below; from the bottom up if too few are."""
        first = self._place(len(candidates), count)
        return best_first(candidates.rewards)[first : first + count]

    def kl(self, candidates: Candidates, count: int) -> float:
        """That of the place's own distribution; of several, the bound for any rule."""
        n = len(candidates)
        return (
            kl_of_rank(n, n - 1 - self._place(n, 1))
            if count == 1
            else super().kl(candidates, count)
        )

    def _place(self, n: int, count: int) -> int:
        """How many of n candidates are better than the first of those that are taken."""
        q = 1 - 1 / self.n_eff if self.n_eff is not None else self.q or 0.0
        above = n - 1 - math.ceil(q * (n - 1) - 1e-9)
        return min(above, n - count)
