"""Tuned checkpoints for a pipeline: finding them, reading them, checking that they fit its base."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from steer.driver.denoisers.checkpoints.known import KNOWN, Checkpoint


if TYPE_CHECKING:
    from steer.driver.denoisers.checkpoints.loading import Tuned, load

__all__ = ["KNOWN", "Checkpoint", "Tuned", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Tuned", "load"):  # these bring peft along
        return getattr(importlib.import_module("steer.driver.denoisers.checkpoints.loading"), name)
    raise AttributeError(f"module 'steer.driver.denoisers.checkpoints' has no attribute {name!r}")
