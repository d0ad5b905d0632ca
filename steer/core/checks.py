"""Argument checks that methods share."""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any


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


def finite(name: str, value: object, example: str) -> float:
    """A finite number, or ValueError that says what to write."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value!r}: must be a number, such as {example}")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: must be finite, such as {example}")
    return value


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")


def share(name: str, value: object, of: str) -> None:
    """Raise ValueError unless `value` is a number above 0 and at most 1."""
    positive(name, value, none=False)
    if isinstance(value, int | float) and value > 1:
        raise ValueError(f"{name}={value!r}: a share of {of}, above 0 and at most 1")


def rising_fractions(name: str, value: object, example: str) -> None:
    """Raise ValueError unless these are fractions of the steps that rise within (0, 1)."""
    places: tuple[Any, ...] = value if isinstance(value, tuple) else (None,)
    numbers = all(isinstance(f, int | float) and 0 < f < 1 for f in places)
    if not numbers or any(after <= before for before, after in pairwise(places)):
        raise ValueError(
            f"{name}={value!r}: must be rising fractions of the steps between 0 and 1, as in "
            f"{example}"
        )


def predicate(when: object, example: str) -> None:
    """Raise ValueError unless `when` is a step predicate."""
    from steer.core.when import When  # which needs torch; the other checks do not

    if not isinstance(when, When):
        raise ValueError(f"when={when!r}: must be a step predicate; write {example}")


def plain_calls(compute: object) -> None:
    """Raise ValueError unless `compute` is a finite number of at least 1, the plain call's cost."""
    number = compute if isinstance(compute, int | float) else math.nan
    if isinstance(compute, bool) or not 1 <= number < math.inf:
        raise ValueError(f"compute={compute!r}: a plain call costs 1; give 1 or more, such as 4")


def did_you_mean(name: str, known: Sequence[str] | Mapping[str, str]) -> str:
    """`did you mean ...? ` where a known name is close, else nothing.

    Args:
        name: As it was written.
        known: Names; or names as `name` is to be compared with them, and as they are to be shown.
    """
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not found:
        return ""
    return f"did you mean {(known[found[0]] if isinstance(known, Mapping) else found[0])!r}? "


def near(name: str, known: Sequence[str]) -> str:
    """The end of an error: `; did you mean ...?` where a known name is close, and all of them."""
    return f"; {did_you_mean(name, known)}there are {', '.join(known)}"


def require_extra(extra: str, *modules: str) -> None:
    """Raise ImportError, with the command that installs it, where a module of an extra is missing.

    Args:
        extra: Its name in `pip install 'steer-diffusion[extra]'`.
        modules: What it brings, by import name.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{', '.join(missing)} not installed: run pip install 'steer-diffusion[{extra}]'"
        )
