"""steer: inference-time alignment for diffusers pipelines."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from steer import shapes as shapes
    from steer.drive import SteeredScheduler as SteeredScheduler
    from steer.errors import (
        CheckpointError as CheckpointError,
        NotAcceptedError as NotAcceptedError,
        RewardError as RewardError,
        SteerError as SteerError,
        UnsupportedPipelineError as UnsupportedPipelineError,
        UnsupportedSchedulerError as UnsupportedSchedulerError,
    )
    from steer.methods import BestOfN as BestOfN, Gate as Gate, Prune as Prune
    from steer.pipeline import Guided as Guided, guided as guided
    from steer.rewards import (
        available_rewards as available_rewards,
        register_reward as register_reward,
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

__all__ = [*_HOME, "shapes"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "shapes":
        return importlib.import_module("steer.shapes")
    if name in _HOME:
        return getattr(importlib.import_module(f"steer.{_HOME[name]}"), name)
    raise AttributeError(f"module 'steer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
