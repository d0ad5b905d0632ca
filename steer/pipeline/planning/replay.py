"""What a plan comes to on recorded pilots, without running it.

A particle's path does not depend on the others (with samplers that draw noise, every particle has
its own), so a plan is replayed by drawing its particles from the recorded ones without replacement,
cutting by the recorded previews, and looking at the winner's reward and judge. That is unbiased for
plans of up to as many particles as were recorded; for larger ones nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steer.methods.guidance.guide import Guide
from steer.methods.selection.best_of_n import BestOfN
from steer.methods.selection.prune import Prune
from steer.pipeline.planning.kinds import Kind, way
from steer.search.method import Method


DRAWS = 256
_SEED = 0

Floats = NDArray[np.float64]


class Outcome(NamedTuple):
    """Expected scores of a plan's winner, `(prompts,)` each."""

    reward: Floats
    judged: Floats


@dataclass(frozen=True, eq=False)
class Pool:
    """What the pilots of a kind came to.

    Attributes:
        kind: How they were sampled.
        previews: Rewards of x0 previews at `kind.looks`, `(prompts, looks, n)`.
        rewards: Of finished images, `(prompts, n)`.
        judged: Their held-out scores; the rewards where nobody judges.
    """

    kind: Kind
    previews: Floats
    rewards: Floats
    judged: Floats

    @classmethod
    def of(cls, kind: Kind, units: Iterable[Mapping[str, Any]]) -> Pool:
        """From the records of all prompts, in their order."""
        found = list(units)
        rewards = np.array([unit["rewards"] for unit in found], dtype=np.float64)
        judged = [unit["judged"] or unit["rewards"] for unit in found]
        shape = (len(found), len(kind.looks), rewards.shape[1])
        previews = np.array([unit["previews"] for unit in found], dtype=np.float64).reshape(shape)
        return cls(kind, previews, rewards, np.array(judged, dtype=np.float64))

    @property
    def n(self) -> int:
        """Particles per prompt."""
        return self.rewards.shape[1]

    def best_of(self, n: int) -> Outcome:
        """Of the best by reward of `n` particles: exact, by order statistics.

        The particle of rank i (from 1, lowest first) of m is the best of n drawn without
        replacement with probability C(i - 1, n - 1) / C(m, n).
        """
        chance = np.array([comb(i, n - 1) / comb(self.n, n) for i in range(self.n)])
        order = np.argsort(self.rewards, 1, kind="stable")
        ranked = (np.take_along_axis(v, order, 1) for v in (self.rewards, self.judged))
        return Outcome(*(values @ chance for values in ranked))

    def prune(self, plan: Prune) -> Outcome:
        """Of what is left of `plan.start` particles after the cuts: a mean over draws."""
        draws = 1 if plan.start == self.n else DRAWS
        rng = np.random.default_rng(_SEED)
        drawn = np.argsort(rng.random((draws, self.n)), 1)[:, : plan.start]
        alive = np.broadcast_to(drawn, (len(self.rewards), *drawn.shape))
        for step, keep in sorted(plan.cuts(self.kind.count).items()):
            if keep < alive.shape[-1]:
                seen = _pick(self.previews[:, self.kind.looks.index(step)], alive)
                best = np.argpartition(-seen, keep - 1, -1)[..., :keep]
                alive = np.take_along_axis(alive, best, -1)
        winner = _pick(self.rewards, alive).argmax(-1)[..., None]
        winner = np.take_along_axis(alive, winner, -1)
        return Outcome(*(_pick(v, winner).mean((1, 2)) for v in (self.rewards, self.judged)))


class Pools:
    """The pools of all kinds, by what a method asks of them."""

    def __init__(self, pools: Iterable[Pool]) -> None:
        self.by_name = {pool.kind.name: pool for pool in pools}

    def shown_by(self, preview: str) -> Pools:
        """The pools whose previews a decoder showed, and those without previews."""
        return Pools(
            replace(pool, kind=replace(pool.kind, preview=""))
            for pool in self.by_name.values()
            if pool.kind.preview == preview or not pool.kind.looks
        )

    def replay(self, method: Method) -> Outcome:
        """What a method's winner is worth.

        Raises:
            KeyError: A method that no recorded pilots stand for.
        """
        window = None
        if isinstance(method, Guide):
            window = next(
                pool.kind.window
                for pool in self.by_name.values()
                if pool.kind.window is not None and pool.kind.when == method.when
            )
            method = method.method
        if isinstance(method, BestOfN):
            return self.by_name[way(method.strides, None, window)].best_of(method.n)
        assert isinstance(method, Prune)
        first = min(method.cuts(self.by_name["full"].kind.count))
        return self.by_name[way(method.strides, first, window)].prune(method)


def _pick(values: Floats, rows: NDArray[np.int64]) -> Floats:
    """`values` `(prompts, n)` at `rows` `(prompts, draws, k)`."""
    return values[np.arange(len(values))[:, None, None], rows]
