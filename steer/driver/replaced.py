"""Attributes of a module that stand in for its own for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced(module: nn.Module, values: Mapping[str, Any]) -> Iterator[None]:
    """Replace attributes of the instance, past `nn.Module.__setattr__`; restored afterwards."""
    here = module.__dict__
    before = {name: here[name] for name in values if name in here}
    try:
        here.update(values)
        yield
    finally:
        for name in values:
            here.pop(name, None)
        here.update(before)
