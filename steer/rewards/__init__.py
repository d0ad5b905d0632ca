"""Rewards: names, functions, models, and rewards made of rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer.core.lazy import lazy_names


if TYPE_CHECKING:
    from steer.rewards.combine.augmented import Augmented as Augmented
    from steer.rewards.combine.minimum import AtLeast as AtLeast
    from steer.rewards.combine.scaled import Scaled as Scaled
    from steer.rewards.frames import PerFrame as PerFrame
    from steer.rewards.groupwise import Diversity as Diversity, Groupwise as Groupwise
    from steer.rewards.registry import (
        available_rewards as available_rewards,
        register_reward as register_reward,
        resolve as resolve,
        reward as reward,
    )
    from steer.rewards.thresholds.calibration import Calibration as Calibration
    from steer.rewards.thresholds.hedge import Hedge as Hedge, hedge as hedge
    from steer.rewards.thresholds.pilots import Pilots as Pilots
    from steer.rewards.thresholds.prior import Prior as Prior
    from steer.rewards.thresholds.scale import Scale as Scale, Scales as Scales
    from steer.rewards.thresholds.scores import Scores as Scores
    from steer.rewards.thresholds.threshold import Threshold as Threshold

_MODULES = {
    "AtLeast": "steer.rewards.combine.minimum",
    "Augmented": "steer.rewards.combine.augmented",
    "available_rewards": "steer.rewards.registry",
    "Calibration": "steer.rewards.thresholds.calibration",
    "Diversity": "steer.rewards.groupwise",
    "Groupwise": "steer.rewards.groupwise",
    "Hedge": "steer.rewards.thresholds.hedge",
    "hedge": "steer.rewards.thresholds.hedge",
    "PerFrame": "steer.rewards.frames",
    "Pilots": "steer.rewards.thresholds.pilots",
    "Prior": "steer.rewards.thresholds.prior",
    "register_reward": "steer.rewards.registry",
    "resolve": "steer.rewards.registry",
    "reward": "steer.rewards.registry",
    "Scale": "steer.rewards.thresholds.scale",
    "Scaled": "steer.rewards.combine.scaled",
    "Scales": "steer.rewards.thresholds.scale",
    "Scores": "steer.rewards.thresholds.scores",
    "Threshold": "steer.rewards.thresholds.threshold",
}

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
