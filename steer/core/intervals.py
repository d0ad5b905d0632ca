"""Means over prompts with bootstrap intervals."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from packaging.version import Version
from scipy import stats


CONFIDENCE, RESAMPLES = 0.95, 9999

_SEED = 20230615
_BATCH_VALUES = 4_000_000
_RNG = "rng" if Version(scipy.__version__) >= Version("1.15") else "random_state"


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its interval: `low` and `high`, None for a single prompt."""

    mean: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """JSON-ready."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def estimate(values: np.ndarray) -> Estimate:
    """The mean of values per prompt `(P,)`, with a 95% bootstrap interval, always the same one."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, None, None)
    if np.ptp(values) == 0:
        return Estimate(mean, mean, mean)
    seeded: Any = {_RNG: np.random.default_rng(_SEED)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BCa's degenerate cases, handled below
        found = stats.bootstrap(
            (values,),
            np.mean,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, _BATCH_VALUES // len(values)),
            confidence_level=CONFIDENCE,
            method="BCa",
            **seeded,
        ).confidence_interval
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
        return Estimate(mean, mean - half, mean + half)
    return Estimate(mean, float(found.low), float(found.high))
