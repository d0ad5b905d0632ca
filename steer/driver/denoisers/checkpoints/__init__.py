"""Tuned checkpoints for a pipeline: finding them, reading them, checking that they fit its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer.core.lazy import lazy_names


if TYPE_CHECKING:
    from steer.driver.denoisers.checkpoints.known import KNOWN as KNOWN, Checkpoint as Checkpoint
    from steer.driver.denoisers.checkpoints.loading import Tuned as Tuned, load as load

_MODULES = {
    "KNOWN": "steer.driver.denoisers.checkpoints.known",
    "Checkpoint": "steer.driver.denoisers.checkpoints.known",
    "Tuned": "steer.driver.denoisers.checkpoints.loading",
    "load": "steer.driver.denoisers.checkpoints.loading",
}

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
