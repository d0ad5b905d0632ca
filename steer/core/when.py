"""Step predicates, which say at which steps something happens; joined by `&` and `|`.

    every(4) & between(0.25, 0.75)
    at(0.2, 0.4, 0.6, 0.8) | at(17)

Fractions count finished denoiser calls: step i of T (from 0) is at (i + 1) / T, the last one at 1.
The repr of a predicate is the expression that makes it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from steer.core.types import Step


_CLOSE = 1e-9


class When(ABC):
    """A predicate on steps: `when(step) -> bool`; subclasses say `holds(index, steps)`."""

    def __call__(self, step: Step) -> bool:
        """Whether it holds at this step."""
        return self.holds(step.index, step.count)

    @abstractmethod
    def holds(self, index: int, steps: int) -> bool:
        """Whether it holds at step `index` of a run of `steps`."""

    def indices(self, steps: int) -> list[int]:
        """All steps of a run of `steps` at which it holds."""
        return [index for index in range(steps) if self.holds(index, steps)]

    def __and__(self, other: When) -> When:
        return _Both(self, other) if isinstance(other, When) else NotImplemented

    def __or__(self, other: When) -> When:
        return _Either(self, other) if isinstance(other, When) else NotImplemented


def every(k: int) -> When:
    """After every k-th denoiser call: steps k - 1, 2 k - 1, ...

    Raises:
        ValueError: `k` is not a whole number of at least 1.
    """
    return _Every(k)


def between(a: float, b: float) -> When:
    """At the steps from fraction `a` to fraction `b` of the run, both included.

    Raises:
        ValueError: Not 0 <= a <= b <= 1.
    """
    return _Between(a, b)


def at(*places: float) -> When:
    """At fractions of the steps (floats in (0, 1]) and at step indices (whole numbers from 0).

    Fraction f of T steps is after floor(f T) denoiser calls, at least one.

    Raises:
        ValueError: No argument, or one that is neither.
    """
    return _At(tuple(places))


@dataclass(frozen=True)
class _Every(When):
    k: int

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:
            raise ValueError(f"k={self.k!r}: must be a whole number, at least 1; write every(4)")

    def holds(self, index: int, steps: int) -> bool:
        return (index + 1) % self.k == 0

    def __repr__(self) -> str:
        return f"every({self.k})"


@dataclass(frozen=True)
class _Between(When):
    a: float
    b: float

    def __post_init__(self) -> None:
        numbers = all(isinstance(end, int | float) for end in (self.a, self.b))
        if not numbers or not 0 <= self.a <= self.b <= 1:
            raise ValueError(
                f"between({self.a!r}, {self.b!r}): fractions of the steps, rising, from 0 to 1; "
                "write between(0.25, 0.75)"
            )

    def holds(self, index: int, steps: int) -> bool:
        return self.a - _CLOSE <= (index + 1) / steps <= self.b + _CLOSE

    def __repr__(self) -> str:
        return f"between({self.a}, {self.b})"


@dataclass(frozen=True)
class _At(When):
    places: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.places or not all(map(_is_place, self.places)):
            raise ValueError(
                f"at{self.places}: fractions of the steps in (0, 1] as floats, or step indices "
                "as whole numbers from 0; write at(0.25, 0.5) or at(10, 15)"
            )

    def holds(self, index: int, steps: int) -> bool:
        return any(
            index == place
            if isinstance(place, int)
            else index == max(math.floor(place * steps + _CLOSE), 1) - 1
            for place in self.places
        )

    def __repr__(self) -> str:
        return f"at({', '.join(map(repr, self.places))})"


def _is_place(place: object) -> bool:
    if isinstance(place, float):
        return 0 < place <= 1
    return type(place) is int and place >= 0


@dataclass(frozen=True)
class _Both(When):
    left: When
    right: When

    def holds(self, index: int, steps: int) -> bool:
        return self.left.holds(index, steps) and self.right.holds(index, steps)

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"


@dataclass(frozen=True)
class _Either(When):
    left: When
    right: When

    def holds(self, index: int, steps: int) -> bool:
        return self.left.holds(index, steps) or self.right.holds(index, steps)

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"
