"""steer: inference-time alignment for diffusers pipelines."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from steer import shapes as shapes
    from steer.drive import SteeredScheduler as SteeredScheduler
    from steer.errors import (
        CheckpointError as CheckpointError,
    )
    from steer.errors import (
        NotAcceptedError as NotAcceptedError,
    )
    from steer.errors import (
        RewardError as RewardError,
    )
    from steer.errors import (
        SteerError as SteerError,
    )
    from steer.errors import (
        UnsupportedPipelineError as UnsupportedPipelineError,
    )
    from steer.errors import (
        UnsupportedSchedulerError as UnsupportedSchedulerError,
    )
    from steer.methods import BestOfN as BestOfN
    from steer.methods import Gate as Gate
    from steer.methods import Prune as Prune
    from steer.pipeline import Guided as Guided
    from steer.pipeline import guided as guided
    from steer.rewards import (
        available_rewards as available_rewards,
    )
    from steer.rewards import (
        register_reward as register_reward,
    )
    from steer.rewards import (
        reward as reward,
    )

__version__ = "0.1.0"

_HOME = {
    "guided": "pipeline",
    "Guided": "pipeline",
    "SteeredScheduler": "drive",
    "BestOfN": "methods",
    "Prune": "methods",
    "Gate": "methods",
    "reward": "rewards",
    "available_rewards": "rewards",
    "register_reward": "rewards",
    "SteerError": "errors",
    "UnsupportedPipelineError": "errors",
    "UnsupportedSchedulerError": "errors",
    "RewardError": "errors",
    "CheckpointError": "errors",
    "NotAcceptedError": "errors",
}

__all__ = [*_HOME, "shapes", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "shapes":
        return importlib.import_module("steer.shapes")
    if name in _HOME:
        return getattr(importlib.import_module(f"steer.{_HOME[name]}"), name)
    raise AttributeError(f"module 'steer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
