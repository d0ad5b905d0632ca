"""Settings files: YAML in, frozen dataclasses out, every unknown key and bad number named."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from steer.core.errors import TuneError


T = TypeVar("T")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; TuneError where it cannot be read or is none."""
    try:
        data = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TuneError(f"config={str(path)!r}: cannot be read ({reason})") from error
    except yaml.YAMLError as error:
        raise TuneError(f"config={str(path)!r}: not YAML ({error})") from error
    if not isinstance(data, dict):
        raise TuneError(f"config={str(path)!r}: must hold 'name: value' lines")
    return data


def build(cls: type[T], data: Any, where: str = "") -> T:
    """A dataclass from a mapping of its fields.

    Args:
        cls: A dataclass; it checks its own values.
        data: Values by field; fields with a default may be missing.
        where: What the mapping is called in the file, such as `"pairs"`.

    Raises:
        TuneError: Not a mapping, an unknown name, or a required one that is missing.
    """
    place = f"{where}: " if where else ""
    if not isinstance(data, Mapping):
        raise TuneError(f"{place}{data!r}: must hold 'name: value' lines")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    for name in data:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.5)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise TuneError(f"{place}{name!r} is unknown: {guess}there are {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise TuneError(f"{place}{name!r} is missing: add a line '{name}: ...'")
    return cls(**data)


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` itself where it is a whole number of at least `least`, else TuneError."""
    if type(value) is not int or value < least:
        raise TuneError(f"{name}={value!r}: must be a whole number of at least {least}")
    return value


def number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> float:
    """`value` as a finite float in [low, high], else TuneError."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= value <= high:
        span = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"of at least {low:g}"
        hint = " (YAML reads 1e-5 as text: write 1.0e-5)" if isinstance(value, str) else ""
        raise TuneError(f"{name}={value!r}: must be a number {span}{hint}")
    return float(value)


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """`value` itself where it is one of `choices`, else TuneError."""
    if value not in choices:
        raise TuneError(f"{name}={value!r}: one of {', '.join(map(str, choices))}")
    return value
