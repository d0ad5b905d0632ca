"""Runs that a calibration learns from: what the previews said, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steer.core.errors import ThresholdError
from steer.rewards.thresholds.scores import Floats, Scores


@dataclass(frozen=True, eq=False, kw_only=True)
class Pilots:
    """Plain runs, one particle per prompt, watched on the way.

    Attributes:
        prompts: One text per pilot.
        steps: Indices of the steps whose previews were scored, rising.
        count: Denoiser calls of a run.
        noise: Noise share `sigma / sqrt(alpha^2 + sigma^2)` at `steps`.
        previews: Rewards of the x0 previews, `(pilots, steps)` float64.
        finals: Rewards of the finished images, `(pilots,)` float64.
        reward, version, model: What scored, and what drew.
    """

    prompts: tuple[str, ...]
    steps: tuple[int, ...]
    count: int
    noise: tuple[float, ...]
    previews: Floats
    finals: Floats
    reward: str = ""
    version: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        n, k = len(self.prompts), len(self.steps)
        if self.previews.shape != (n, k) or self.finals.shape != (n,) or len(self.noise) != k:
            raise ThresholdError(
                f"previews {self.previews.shape}, finals {self.finals.shape}, noise "
                f"({len(self.noise)},) for {n} prompts and {k} steps: must be ({n}, {k}), ({n},) "
                f"and ({k},)"
            )
        if not (np.isfinite(self.previews).all() and np.isfinite(self.finals).all()):
            raise ThresholdError("previews and finals of pilots must be finite")

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, index: Sequence[int] | NDArray[Any] | slice) -> Pilots:
        """Some of the pilots."""
        rows = np.arange(len(self))[index]
        return replace(
            self,
            prompts=tuple(self.prompts[row] for row in rows),
            previews=self.previews[rows],
            finals=self.finals[rows],
        )

    def scores(self) -> Scores:
        """The final rewards by prompt, for `Threshold.fit`."""
        found = Scores(self.reward, version=self.version, model=self.model)
        return found.add(self.finals, self.prompts)
