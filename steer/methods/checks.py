"""Argument checks that methods share."""

from __future__ import annotations

import math
from collections.abc import Sequence


def whole(name: str, value: object, example: str) -> None:
    """Raise ValueError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a whole number, at least 1; write {example}")


def positive(
    name: str, value: object, below: float = math.inf, *, zero: bool = False, none: bool = True
) -> None:
    """Raise ValueError unless `value` is a number above 0 (or 0 too) and below `below`, or None."""
    if value is None and none:
        return
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if (0 < number < below and math.isfinite(number)) or (zero and number == 0):
        return
    least = "at least 0" if zero else "above 0"
    most = "" if below == math.inf else f" and below {below:g}"
    raise ValueError(f"{name}={value!r}: must be a finite number {least}{most}")


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")
