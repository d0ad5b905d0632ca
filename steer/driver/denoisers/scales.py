"""How a blend's scale changes over the steps: a number, `linear(a, b)` or `window(s, from, to)`.

Step i of T (from 0) is at (i + 1) / T, as for `steer.every` and `steer.between`. The repr of a
schedule is the expression that makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from steer.driver.denoisers.blend import number


@runtime_checkable
class Schedule(Protocol):
    """A scale per step."""

    def at(self, index: int, steps: int) -> float:
        """The scale at step `index` of `steps`."""
        ...


Scale: TypeAlias = float | Schedule


def linear(start: float, end: float) -> Schedule:
    """From `start` at the first step to `end` at the last, evenly.

    Raises:
        ValueError: Not finite numbers.
    """
    return _Linear(start, end)


def window(scale: float, start: float, end: float, outside: float = 1.0) -> Schedule:
    """`scale` from fraction `start` of the steps to fraction `end`, both included, else `outside`.

    `window(2.0, 0.2, 1.0)` leaves the tuned model alone (`outside=1`) for the first fifth, as the
    zero-init option of RLG's reference code does for its first steps.

    Raises:
        ValueError: Not finite numbers, or not 0 <= start <= end <= 1.
    """
    return _Window(scale, start, end, outside)


def at(scale: Scale, index: int, steps: int) -> float:
    """The value of a number or a schedule at a step."""
    return scale.at(index, steps) if isinstance(scale, Schedule) else float(scale)


def check_scale(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite number or a schedule."""
    if isinstance(value, Schedule):
        return
    try:
        number(name, value)
    except ValueError as error:
        raise ValueError(
            f"{error}, or a schedule such as linear(1.0, 2.0) or window(2.0, 0.2, 1.0)"
        ) from None


@dataclass(frozen=True)
class _Linear:
    start: float
    end: float

    def __post_init__(self) -> None:
        number("start", self.start)
        number("end", self.end)

    def at(self, index: int, steps: int) -> float:
        share = index / (steps - 1) if steps > 1 else 1.0
        return self.start + (self.end - self.start) * share

    def __repr__(self) -> str:
        return f"linear({self.start}, {self.end})"


@dataclass(frozen=True)
class _Window:
    scale: float
    start: float
    end: float
    outside: float = 1.0

    def __post_init__(self) -> None:
        number("scale", self.scale)
        number("outside", self.outside)
        number("start", self.start, 0, 1)
        number("end", self.end, 0, 1)
        if self.start > self.end:
            raise ValueError(
                f"window from start={self.start!r} to end={self.end!r}: must not end before it "
                "starts"
            )

    def at(self, index: int, steps: int) -> float:
        done = (index + 1) / steps
        inside = self.start - 1e-9 <= done <= self.end + 1e-9
        return float(self.scale if inside else self.outside)

    def __repr__(self) -> str:
        return f"window({self.scale}, {self.start}, {self.end}, {self.outside})"
