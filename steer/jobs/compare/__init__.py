"""`steer compare`: arms side by side on the same prompts and seeds, with intervals and a page.

from steer.jobs.compare import read, run

run(read("compare.yaml"), "out")    # draws, scores, analyses; resumable
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer.core.lazy import lazy_names


if TYPE_CHECKING:
    from steer.jobs.compare.config import Arm as Arm, Comparison as Comparison, read as read
    from steer.jobs.compare.job import CompareJob as CompareJob, run as run

_MODULES = {
    "Arm": "steer.jobs.compare.config",
    "CompareJob": "steer.jobs.compare.job",
    "Comparison": "steer.jobs.compare.config",
    "read": "steer.jobs.compare.config",
    "run": "steer.jobs.compare.job",
}

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
