"""Rewards: names, functions, models, and rewards made of rewards."""

from __future__ import annotations

from steer.rewards.combine.minimum import AtLeast
from steer.rewards.frames import PerFrame
from steer.rewards.registry import available_rewards, register_reward, resolve, reward
from steer.rewards.thresholds.calibration import Calibration
from steer.rewards.thresholds.pilots import Pilots
from steer.rewards.thresholds.scores import Scores
from steer.rewards.thresholds.threshold import Threshold


__all__ = [
    "AtLeast",
    "Calibration",
    "PerFrame",
    "Pilots",
    "Scores",
    "Threshold",
    "available_rewards",
    "register_reward",
    "resolve",
    "reward",
]
