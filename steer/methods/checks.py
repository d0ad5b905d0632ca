"""Argument checks that methods share."""

from __future__ import annotations


def whole(name: str, value: object, example: str) -> None:
    """Raise ValueError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a whole number, at least 1; write {example}")
