"""Training: scored samples in, tuned checkpoints out. See docs/tune.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer.core.checks import require_extra
from steer.core.lazy import lazy_names


if TYPE_CHECKING:
    from steer.core.errors import NonFiniteError as NonFiniteError, TuneError as TuneError
    from steer.tune.config import TuneConfig as TuneConfig
    from steer.tune.dataset import Dataset as Dataset
    from steer.tune.run import tune as tune

require_extra("train", "pyarrow")

_MODULES = {
    "Dataset": "steer.tune.dataset",
    "NonFiniteError": "steer.core.errors",
    "TuneConfig": "steer.tune.config",
    "TuneError": "steer.core.errors",
    "tune": "steer.tune.run",
}

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
