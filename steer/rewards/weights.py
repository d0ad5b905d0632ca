"""Parts with weights: their checks, and the names under which they are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TypeAlias, TypeGuard

from steer.core.types import Reward


Term: TypeAlias = tuple[Reward, float]
"""A reward and its weight."""


def name_terms(
    terms: Sequence[Term], names: Sequence[str] | None
) -> tuple[dict[str, Reward], dict[str, float]]:
    """Rewards and their weights by unique name.

    Args:
        terms: `(reward, weight)` pairs.
        names: How they are called; default their own names.

    Raises:
        ValueError: No parts, or a weight that is not a finite number.
    """
    if not terms:
        raise ValueError("a weighted reward needs a part, for example {'hpsv2': 1.0}")
    titles = unique(names or [reward.name for reward, _ in terms])
    named = list(zip(titles, terms, strict=True))
    weights = {title: as_weight(title, weight) for title, (_, weight) in named}
    return {title: reward for title, (reward, _) in named}, weights


def as_weight(name: str, weight: object) -> float:
    """`weight` as a float; ValueError unless it is a finite number."""
    if not is_finite(weight):
        raise ValueError(f"weight of {name!r} is {weight!r}: it must be a finite number")
    return float(weight)


def as_positive(name: str, value: object) -> float | None:
    """`value` as a float, or None; ValueError unless it is a finite number above 0."""
    if value is None:
        return None
    if not is_finite(value) or value <= 0:
        raise ValueError(f"{name}={value!r}: must be a finite number above 0, or None")
    return float(value)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether `value` is a number that is neither infinite, NaN nor a bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def unique(names: Sequence[str]) -> list[str]:
    """Names of which later equals are numbered: `name`, `name#2`."""
    found: list[str] = []
    for name in names:
        title, count = name, 1
        while title in found:
            count += 1
            title = f"{name}#{count}"
        found.append(title)
    return found
