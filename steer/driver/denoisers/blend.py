"""What a blend is: which denoisers are evaluated at a step, and with what weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias


BASE, TUNED, NEGATIVE = "base", "tuned", "negative"

Weights: TypeAlias = Mapping[str, float]
"""Weights by the denoiser's name: `"base"`, `"tuned"`, or one that the blend brings."""

_LONG = 200

NO_SOURCES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Mix:
    """A weighted sum of raw denoiser outputs, at one step.

    Classifier-free guidance is linear and commutes with the sum: combining raw outputs equals
    combining guided ones.

    Attributes:
        conditional: Weights of the denoisers that are given the prompt.
        unconditional: Weights of those given the null prompt in classifier-free guidance; `None`
            for the same as `conditional`.
        proxy: Replaces the null (negative) prompt's embeddings by
            `(1 + proxy) * null - proxy * prompt`.
    """

    conditional: Weights
    unconditional: Weights | None = None
    proxy: float = 0.0

    def __post_init__(self) -> None:
        for side in (self.conditional, self.unconditional):
            if side is not None and not any(side.values()):
                raise ValueError(f"weights={dict(side)!r}: one of them at least must not be 0")

    @property
    def split(self) -> bool:
        """Whether prompt and null prompt are evaluated by different denoisers."""
        return self.unconditional is not None

    @property
    def rows(self) -> int:
        """Denoiser evaluations per row; with `split`, prompt and null prompt are one together."""
        sides = [self.conditional, self.unconditional or self.conditional]
        return max(sum(1 for weight in side.values() if weight) for side in sides)


class Blend(ABC):
    """A combination of denoisers. Subclasses are frozen dataclasses; their repr makes them again.

    Attributes:
        needs_tuned: Whether it is an error without `tuned=`.
    """

    needs_tuned: ClassVar[bool] = True

    @property
    def sources(self) -> Mapping[str, Any]:
        """Further denoisers that it brings, by name; each is whatever `tuned=` takes."""
        return NO_SOURCES

    @property
    def inherited(self) -> float:
        """The share of (tuned - base) that is added to the weights of its negative model."""
        return 0.0

    @abstractmethod
    def mix(self, index: int, steps: int) -> Mix:
        """The weighted sum at step `index` of `steps`."""


def cost(blend: Blend, steps: int) -> int:
    """Denoiser evaluations per row, the largest number over `steps` steps."""
    return max(blend.mix(index, steps).rows for index in range(max(steps, 1)))


def shown(blend: Blend) -> str:
    """A blend's repr, shortened if it holds torch modules, whose reprs are long."""
    text = repr(blend)
    return text if len(text) <= _LONG else f"{type(blend).__name__}(...)"


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise ValueError unless `value` is a finite number within bounds."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not least <= value <= most:
        bounds = f", from {least:g} to {most:g}" if math.isfinite(least + most) else ""
        some = ", not negative" if math.isfinite(least) and not math.isfinite(most) else ""
        raise ValueError(f"{name}={value!r}: must be a finite number{bounds}{some}")
