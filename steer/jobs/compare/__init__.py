"""`steer compare`: arms side by side on the same prompts and seeds, with intervals and a page.

from steer.jobs.compare import read, run

run(read("compare.yaml"), "out")    # draws, scores, analyses; resumable
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from steer.jobs.compare.config import Arm, Comparison, read
    from steer.jobs.compare.job import CompareJob, run

__all__ = ["Arm", "CompareJob", "Comparison", "read", "run"]
_IN_CONFIG = ("Arm", "Comparison", "read")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home = "config" if name in _IN_CONFIG else "job"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
