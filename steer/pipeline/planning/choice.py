"""Which plan is taken at a budget, and whether it pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steer.core.costs import Costs
from steer.core.intervals import Estimate, estimate
from steer.methods.selection.best_of_n import BestOfN
from steer.pipeline.planning.families import plans_of
from steer.pipeline.planning.replay import Floats, Outcome, Pools
from steer.search.method import Method


@dataclass(frozen=True)
class Plan:
    """What a budget is spent on.

    Attributes:
        budget: Plain calls that may be spent.
        method: What is run: the plain call where searching does not pay.
        calls: Plain calls that it costs.
        reward, judge: Of its winners, means over prompts.
        reward_gain: Reward above the plain call's.
        gain: Judge score above the plain call's, of plans chosen on one half of the prompts and
            looked at on the other.
        pays: Whether that is clear of zero.
    """

    budget: float
    method: Method
    calls: float
    reward: Estimate
    judge: Estimate
    reward_gain: Estimate
    gain: Estimate
    pays: bool


@dataclass(frozen=True)
class Decoder:
    """What decodes previews, and what plans with it are worth.

    Attributes:
        name: As `guided(preview=)` takes it; empty for what the guided pipeline had.
        cost: A preview, in denoiser rows.
        gain: Judge score above the plain call's, a mean over the budgets.
    """

    name: str
    cost: float
    gain: Estimate


class Chooser:
    """All plans at all budgets, replayed.

    Args:
        pools: The pilots.
        budgets: In plain calls, rising.
        costs: What a row, a decode, a score cost.
    """

    def __init__(self, pools: Pools, budgets: Sequence[float], costs: Costs) -> None:
        self.costs, self.count = costs, pools.by_name["full"].kind.count
        found: dict[Method, None] = {BestOfN(1): None}
        for budget in budgets:
            for pool in pools.by_name.values():
                found |= dict.fromkeys(plans_of(pool.kind, pool.n, budget, costs))
        self.methods = list(found)
        self.outcomes = [pools.replay(method) for method in self.methods]
        self.works = [method.work(self.count) for method in self.methods]
        self.calls = np.array([costs.calls(work, self.count) for work in self.works])
        self.judged = np.stack([outcome.judged for outcome in self.outcomes])

    def told_apart(self, budgets: Sequence[float]) -> list[float]:
        """Those below the most expensive plan, and the first that pays for it; they rise."""
        dearest = float(self.calls.max())
        below = [budget for budget in budgets if budget < dearest]
        return [*below, *budgets[len(below) : len(below) + 1]]

    def at(self, budget: float) -> Plan:
        """The plan for a budget."""
        rows = self._affordable(budget)
        row = self._choose(rows, np.arange(self.judged.shape[1]))
        gain = estimate(self._held_out(rows))
        pays = gain.low is not None and gain.low > 0 and row != 0
        row = row if pays else 0
        outcome: Outcome = self.outcomes[row]
        return Plan(
            budget=float(budget),
            method=self.methods[row],
            calls=float(self.calls[row]),
            reward=estimate(outcome.reward),
            judge=estimate(outcome.judged),
            reward_gain=estimate(outcome.reward - self.outcomes[0].reward),
            gain=gain,
            pays=pays,
        )

    def held_out(self, budget: float) -> Floats:
        """Judge score above the plain call's per prompt, of what other prompts would choose."""
        return self._held_out(self._affordable(budget))

    def _affordable(self, budget: float) -> NDArray[np.int64]:
        """Plans that a budget pays for; the plain call costs one, whatever its score."""
        fits = [self.costs.fits(work, budget, self.count) for work in self.works]
        return np.flatnonzero([True, *fits[1:]])

    def _choose(self, rows: NDArray[np.int64], prompts: NDArray[np.int64]) -> int:
        """The cheapest of the plans within a standard error of the best, by these prompts."""
        values = self.judged[np.ix_(rows, prompts)]
        means = values.mean(1)
        behind = values[means.argmax()] - values
        error = behind.std(1, ddof=1) / np.sqrt(len(prompts)) if len(prompts) > 1 else 0 * means
        level = behind.mean(1) <= error
        order = np.lexsort((-means, self.calls[rows], ~level))
        return int(rows[order[0]])

    def _held_out(self, rows: NDArray[np.int64]) -> Floats:
        """Judge score above the plain call's per prompt, of what the other half would choose."""
        prompts = np.arange(self.judged.shape[1])
        gains = np.zeros(len(prompts))
        for half in (0, 1):
            here = prompts % 2 == half
            row = self._choose(rows, prompts[~here])
            gains[here] = self.judged[row, here] - self.judged[0, here]
        return gains


def choose_decoder(
    choosers: Mapping[str, Chooser], budgets: Sequence[float]
) -> tuple[str, tuple[Decoder, ...]]:
    """The cheapest of the decoders within a standard error of the best, by held-out gains.

    Args:
        choosers: By the name of the decoder of previews.
        budgets: Over which gains are averaged.

    Returns:
        Its name, and what is known of each; of a single one nothing.
    """
    if len(choosers) == 1:
        return next(iter(choosers)), ()
    gains = {
        name: np.mean([chooser.held_out(budget) for budget in budgets], 0)
        for name, chooser in choosers.items()
    }
    best = max(gains.values(), key=np.mean)
    known, level = [], []
    for name, chooser in choosers.items():
        cost = chooser.costs.preview / chooser.costs.row
        known.append(Decoder(name, cost, estimate(gains[name])))
        behind = best - gains[name]
        if behind.mean() <= behind.std(ddof=1) / np.sqrt(len(behind)):
            level.append((cost, name))
    return min(level, key=lambda pair: pair[0])[1], tuple(known)
