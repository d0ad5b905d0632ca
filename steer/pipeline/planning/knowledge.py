"""What pilots say beside the plans: fewer steps, previews, and more candidates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from steer.core.intervals import Estimate, estimate
from steer.pipeline.planning.replay import Floats, Outcome, Pool, Pools


@dataclass(frozen=True)
class Shorter:
    """Images of a run of fewer denoiser calls, DDIM between points of the pipeline's own grid.

    Attributes:
        calls: Denoiser calls; the last entry of a list is the plain call.
        reward, judge: Means over prompts and particles.
        reward_gain, gain: Of reward and judge above the plain call's.
    """

    calls: int
    reward: Estimate
    judge: Estimate
    reward_gain: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Foresight:
    """How well previews at a step rank what the same particles come to.

    Attributes:
        kind: Of pilots: `"full"`, or `"draft 4-12"` (four strides up to the step 12).
        fraction: Of the steps that lie behind.
        spearman: Rank correlation of preview and final reward within a prompt, mean over prompts.
    """

    kind: str
    fraction: float
    spearman: Estimate


@dataclass(frozen=True)
class Crowd:
    """What the best of n candidates by reward is worth.

    Attributes:
        n: Candidates, every step each.
        reward, judge: Means over prompts.
        reward_gain, gain: Of reward and judge above the plain call's.
        behind: Judge score below that of the n where it is highest.
    """

    n: int
    reward: Estimate
    judge: Estimate
    reward_gain: Estimate
    gain: Estimate
    behind: Estimate


def shorter(pools: Pools) -> tuple[Shorter, ...]:
    """Runs of fewer steps, rising, the plain call last."""
    kinds = [pool for name, pool in pools.by_name.items() if not pool.kind.looks or name == "full"]
    kinds.sort(key=lambda pool: pool.kind.rows)
    plain = pools.by_name["full"].best_of(1)
    found = [(pool.kind.rows, pool.best_of(1)) for pool in kinds]
    return tuple(Shorter(calls, *_means(outcome, plain)) for calls, outcome in found)


def foresight(pools: Pools) -> tuple[Foresight, ...]:
    """Of all kinds with previews that nothing guides, at each of their steps."""
    return tuple(
        Foresight(pool.kind.name, fraction, estimate(_ranks(pool.previews[:, row], pool.rewards)))
        for pool in pools.by_name.values()
        if pool.kind.window is None
        for row, fraction in enumerate(pool.kind.at)
    )


def crowds(pool: Pool) -> tuple[Crowd, ...]:
    """Best-of-n by n, to all that were recorded."""
    found = {n: pool.best_of(n) for n in _sizes(pool.n)}
    best = max((outcome.judged for outcome in found.values()), key=np.mean)
    return tuple(
        Crowd(n, *_means(outcome, found[1]), estimate(best - outcome.judged))
        for n, outcome in found.items()
    )


def _means(outcome: Outcome, plain: Outcome) -> tuple[Estimate, Estimate, Estimate, Estimate]:
    """Of reward and judge, and of both above the plain call's."""
    return (
        estimate(outcome.reward),
        estimate(outcome.judged),
        estimate(outcome.reward - plain.reward),
        estimate(outcome.judged - plain.judged),
    )


def _sizes(most: int) -> Iterable[int]:
    return [n for n in range(1, most + 1) if n <= 8 or n % max(most // 16, 1) == 0 or n == most]


def _ranks(previews: Floats, finals: Floats) -> Floats:
    """Spearman's correlation per prompt, 0 where one of the two is constant."""
    pairs = zip(previews, finals, strict=True)
    return np.array(
        [
            float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])
            if np.ptp(a) > 0 and np.ptp(b) > 0
            else 0.0
            for a, b in pairs
        ]
    )
