"""Picks by weighted draws: softly the best, or pessimistically."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steer.core.checks import positive
from steer.core.divergence import kl_of_weights
from steer.search.picks.base import Candidates, Floats, Pick, best_first


@dataclass(frozen=True)
class SoftBest(Pick):
    """A draw with weights `softmax(reward / temperature)`, without replacement: soft best-of-n.

    Rewards are standardised per prompt, so that a temperature means the same under every reward:
    towards 0 it is the best, at infinity a candidate at random. Verdun et al. 2025
    (arXiv:2505.03156).

    Args:
        temperature: In standard deviations of the candidates' rewards, above 0.

    Raises:
        ValueError: `temperature` is no finite number above 0.
    """

    temperature: float = 0.3

    def __post_init__(self) -> None:
        positive("temperature", self.temperature, none=False)

    def choose(self, candidates: Candidates, count: int) -> list[int]:
        """The drawn ones, best first."""
        return _drawn(candidates, self._logs(candidates), count)

    def kl(self, candidates: Candidates, count: int) -> float:
        """That of the weights."""
        return min(super().kl(candidates, count), kl_of_weights(self._logs(candidates)))

    def _logs(self, candidates: Candidates) -> Floats:
        return candidates.standardised() / self.temperature


@dataclass(frozen=True)
class Pessimistic(Pick):
    """A draw that a chi-squared penalty keeps from trusting a few high rewards.

    InferenceTimePessimism (Huang et al. 2025, arXiv:2503.21878): weights
    `w = max(0, (reward - L) / beta) / n`, with the level L that makes them sum to 1; with `u = n w`
    they maximise `mean(u reward) - beta/2 mean(u^2)`. Rewards are standardised per prompt. Without
    replacement where several are returned; those of weight 0 only where nothing else is left.

    Args:
        beta: Strength of the penalty, in standard deviations of the candidates' rewards, above 0:
            towards 0 it is the best, at infinity a candidate at random.

    Raises:
        ValueError: `beta` is no finite number above 0.
    """

    beta: float = 0.3

    def __post_init__(self) -> None:
        positive("beta", self.beta, none=False)

    def choose(self, candidates: Candidates, count: int) -> list[int]:
        """The drawn ones, best first."""
        return _drawn(candidates, self._logs(candidates), count)

    def kl(self, candidates: Candidates, count: int) -> float:
        """That of the weights."""
        return min(super().kl(candidates, count), kl_of_weights(self._logs(candidates)))

    def _logs(self, candidates: Candidates) -> Floats:
        with np.errstate(divide="ignore"):
            return np.log(pessimistic_weights(candidates.standardised(), self.beta))


def pessimistic_weights(rewards: Floats, beta: float) -> Floats:
    """`max(0, (r_i - L) / beta) / n`, `(n,)`, with L such that they sum to 1; by sort and scan.

    Args:
        rewards: `(n,)`, finite.
        beta: Above 0.
    """
    falling = np.sort(rewards)[::-1]
    size = np.arange(1, len(rewards) + 1)
    levels = (np.cumsum(falling) - len(rewards) * beta) / size
    level = levels[np.flatnonzero(falling > levels)[-1]]
    weights = np.maximum(rewards - level, 0) / beta / len(rewards)
    return weights / weights.sum()


def _drawn(candidates: Candidates, log_weights: Floats, count: int) -> list[int]:
    """`count` rows by weight without replacement, by Gumbel noise; best first.

    Kool, van Hoof & Welling 2019 (arXiv:1903.06059). Rows of weight 0 come after all others, by
    reward.
    """
    keys = log_weights - np.log(-np.log(candidates.uniforms))
    dead = np.isneginf(log_weights)
    order = np.lexsort((np.where(dead, -candidates.rewards, -keys), dead))
    return best_first(candidates.rewards, order[:count].tolist())
