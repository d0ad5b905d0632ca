"""`steer compare`: arms side by side on the same prompts and seeds, with intervals and a page.

comparison = steer.compare.read("compare.yaml")     # what to compare
steer.compare.run(comparison, "out")                # draws, scores, analyses; resumable
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from steer.jobs.compare.config import Arm, Comparison, read
    from steer.jobs.compare.run import run

__all__ = ["Arm", "Comparison", "read", "run"]
_HOMES = {"Arm": "config", "Comparison": "config", "read": "config", "run": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
