"""What is good enough on the way: a reward for every step, or the cuts of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from steer.rewards.thresholds.calibration import Calibration
from steer.rewards.thresholds.threshold import Threshold
from steer.search.context import Context


Bar: TypeAlias = float | tuple[float, ...] | Calibration
"""One reward, rewards spread evenly over the places that are judged, or a calibration."""


@dataclass(frozen=True)
class Bars:
    """The reward that has to be reached at each step.

    Attributes:
        levels: By index of a step, for its x0 preview; by the number of steps, for the finished
            image.
        threshold: What the levels are margins to; `None` where they are rewards.
    """

    levels: Mapping[int, float]
    threshold: Threshold | None = None

    @classmethod
    def of(cls, ctx: Context, bar: Bar, places: Sequence[int]) -> Bars:
        """The bars of a call.

        Args:
            ctx: The call.
            bar: What is good enough; a calibration has places of its own, and its threshold is the
                finished image's.
            places: Where rewards apply; of places that coincide the last one counts.

        Raises:
            ThresholdError: A calibration of another reward, schedule or set of prompts.
        """
        if isinstance(bar, Calibration):
            bar.check(ctx.reward, ctx.steps, ctx.prompts)
            cuts = dict(zip(bar.steps, bar.cuts, strict=True))
            return cls({**cuts, len(ctx.steps): 0.0}, bar.threshold)
        values = bar if isinstance(bar, tuple) else (bar,)
        return cls(
            {place: values[i * len(values) // len(places)] for i, place in enumerate(places)}
        )

    def at(self, index: int, prompt: str) -> float:
        """The reward to reach at a step for a prompt; minus infinity where everything passes."""
        level = self.levels.get(index, -math.inf)
        return level if self.threshold is None else level + self.threshold.at(prompt)

    def judges(self, index: int) -> bool:
        """Whether anything can fail at a step."""
        return self.levels.get(index, -math.inf) > -math.inf


def read_bar(value: object, example: str) -> Bar:
    """`value` as a bar: lists become tuples, paths the calibrations that they name.

    Raises:
        ValueError: Something else, or NaN.
        ThresholdError: A file that holds no calibration.
    """
    if isinstance(value, str | Path):
        return Calibration.load(value)
    if isinstance(value, Calibration):
        return value
    if isinstance(value, list | tuple) and value and all(map(_is_level, value)):
        return tuple(value)
    if isinstance(value, int | float) and _is_level(value):
        return value
    raise ValueError(
        f"threshold={value!r}: must be a reward, rewards for the steps in turn, a Calibration, or "
        f"the path of one; write {example}"
    )


def _is_level(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
