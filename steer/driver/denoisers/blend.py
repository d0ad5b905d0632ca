"""The contract of a blend: which denoisers answer at a step, and with what weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias


BASE, TUNED, NEGATIVE = "base", "tuned", "negative"

Weights: TypeAlias = Mapping[str, float]
"""Arms by name (`"base"`, `"tuned"`, or one of a blend's own), and what each counts."""

_LONG = 200

NO_SOURCES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Mix:
    """What answers one step: raw denoiser outputs, summed with weights.

    Linear classifier-free guidance commutes with such a sum, so that combining raw outputs is
    combining guided ones.

    Attributes:
        conditional: Arms that see the prompt, and their weights.
        unconditional: Arms in the unconditional slot of classifier-free guidance; `None` where they
            are the same ones.
        proxy: The unconditional slot sees `(1 + proxy) * null - proxy * prompt` in place of the
            null (negative) prompt's embeddings.
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
        """Whether the two slots of classifier-free guidance are answered apart."""
        return self.unconditional is not None

    @property
    def rows(self) -> int:
        """Denoiser evaluations per row; slots that are answered apart share a row's two halves."""
        sides = [self.conditional, self.unconditional or self.conditional]
        return max(sum(1 for weight in side.values() if weight) for side in sides)


class Blend(ABC):
    """A combination of denoisers; subclasses are frozen dataclasses, their repr is what they do.

    Attributes:
        needs_tuned: Whether it means nothing without `tuned=`.
    """

    needs_tuned: ClassVar[bool] = True

    @property
    def sources(self) -> Mapping[str, Any]:
        """Further denoisers that it brings, by arm: whatever `tuned=` takes."""
        return NO_SOURCES

    @property
    def inherited(self) -> float:
        """How much of what tuning changed is added to the weights of its negative model."""
        return 0.0

    @abstractmethod
    def mix(self, index: int, steps: int) -> Mix:
        """What answers at step `index` of `steps`."""


def cost(blend: Blend, steps: int) -> int:
    """Denoiser evaluations per row at the dearest of `steps` steps."""
    return max(blend.mix(index, steps).rows for index in range(max(steps, 1)))


def shown(blend: Blend) -> str:
    """A blend's repr, cut where its models are modules, whose reprs are pages."""
    text = repr(blend)
    return text if len(text) <= _LONG else f"{type(blend).__name__}(...)"


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise ValueError unless `value` is a finite number within bounds."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not least <= value <= most:
        bounds = f", from {least:g} to {most:g}" if math.isfinite(least + most) else ""
        some = ", not negative" if math.isfinite(least) and not math.isfinite(most) else ""
        raise ValueError(f"{name}={value!r}: must be a finite number{bounds}{some}")
