"""How greedy a search may be before its reward misleads it, from scores of a held-out judge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq


Floats = NDArray[np.float64]

_PLACES = 200
_HOTTEST, _COLDEST = 30.0, 0.05


@dataclass(frozen=True)
class Hedge:
    """Where the held-out score of what is chosen is highest.

    Attributes:
        n: Of best-of-n; `None` where the held-out score rises as far as the calibration sees: then
            take as many candidates as can be paid for. For `steer.picks.Quantile(n_eff=n)`.
        temperature: Of a soft best of as many candidates as the calibration has, in standard
            deviations of a prompt's rewards; `None` likewise. For `steer.picks.SoftBest`.
    """

    n: float | None
    temperature: float | None


def hedge(rewards: Any, held_out: Any) -> Hedge:
    """The greed at which a held-out score peaks: HedgeTune.

    Khalaf et al. 2025 (arXiv:2506.19248): with u the percentile of a candidate under the reward and
    h(u) its held-out score, best-of-n has the law `p_n(u) = n u^(n - 1)`, and the held-out mean is
    stationary where `E_n[h(u) psi(u)] = 0` with `psi = d log p_n / dn = 1 / n + log u`. For the
    soft best that is `Cov_w(h, reward) = 0` under its weights. Where rewards mislead, the mean
    rises to one peak and falls. Some 64 prompts by 32 candidates say enough; the held-out score
    has to be of another kind than the reward, or it is misled by the same candidates.

    Args:
        rewards: Optimised rewards `(P, n)`: n plain samples of each of P prompts.
        held_out: Scores of the same by a judge that is not optimised, `(P, n)`.

    Returns:
        The peaks; see `Hedge`.

    Raises:
        ValueError: Not two arrays of one shape `(P, n)`, n at least 2, or a number that is not
            finite.
    """
    proxy, gold = (_as_table(*p) for p in (("rewards", rewards), ("held_out", held_out)))
    if proxy.shape != gold.shape:
        raise ValueError(f"rewards {proxy.shape} and held_out {gold.shape}: give one shape (P, n)")
    gold = gold - gold.mean(1, keepdims=True)
    by_rank = np.take_along_axis(gold, proxy.argsort(1, kind="stable"), 1).mean(0)
    count = len(by_rank)

    def slope(log_n: float) -> float:
        return _slope(by_rank, math.exp(log_n))

    def cooling(log_coldness: float) -> float:
        return _covariance(proxy, gold, math.exp(-log_coldness))

    n = _first_fall(slope, 0.0, math.log(count))
    cold = _first_fall(cooling, -math.log(_HOTTEST), -math.log(_COLDEST))
    return Hedge(
        n=None if n is None else math.exp(n),
        temperature=None if cold is None else math.exp(-cold),
    )


def _slope(by_rank: Floats, n: float) -> float:
    """`E_n[h psi]` for h constant on the percentiles of every rank: exact, by `u^n log u`."""
    u = np.arange(1, len(by_rank)) / len(by_rank)
    anti = np.concatenate([[0.0], u**n * np.log(u), [0.0]])
    return float((by_rank * np.diff(anti)).sum())


def _covariance(proxy: Floats, gold: Floats, temperature: float) -> float:
    """Mean over prompts of the covariance of both under the weights of the soft best."""
    spread = proxy.std(1, keepdims=True)
    z = (proxy - proxy.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    weights = np.exp((z - z.max(1, keepdims=True)) / temperature)
    weights /= weights.sum(1, keepdims=True)
    centred = z - (weights * z).sum(1, keepdims=True)
    return float((weights * centred * gold).sum(1).mean())


def _first_fall(slope: Callable[[float], float], start: float, end: float) -> float | None:
    """Where a slope that begins above zero first falls below it; `start` where it never is above.

    `None` where it stays above.
    """
    places = np.linspace(start, end, _PLACES)
    values = [slope(float(place)) for place in places]
    if values[0] <= 0:
        return start
    for k in range(1, len(places)):
        if values[k] < 0:
            root: Any = brentq(slope, float(places[k - 1]), float(places[k]))
            return float(root)
    return None


def _as_table(name: str, values: Any) -> Floats:
    found = np.asarray(values, dtype=float)
    if found.ndim != 2 or found.shape[1] < 2 or not len(found):
        raise ValueError(f"{name} has shape {found.shape}: give (P, n), n of at least 2 per prompt")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} has a number that is not finite: leave such prompts out")
    return found
