"""Training: scored samples in, tuned checkpoints out. See docs/tune.md."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from steer.core.checks import require_extra


if TYPE_CHECKING:
    from steer.core.errors import NonFiniteError as NonFiniteError, TuneError as TuneError
    from steer.tune.config import TuneConfig as TuneConfig
    from steer.tune.dataset import Dataset as Dataset
    from steer.tune.trainer import tune as tune

require_extra("train", "pyarrow", "tqdm")

_HOME = {
    "Dataset": "tune.dataset",
    "NonFiniteError": "core.errors",
    "TuneConfig": "tune.config",
    "TuneError": "core.errors",
    "tune": "tune.trainer",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"steer.{_HOME[name]}"), name)
    raise AttributeError(f"module 'steer.tune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
