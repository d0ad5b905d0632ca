"""Tuned checkpoints beside their base: loaded, and blended with it while sampling."""

from __future__ import annotations

from steer.driver.denoisers.blend import Blend, Mix
from steer.driver.denoisers.checkpoints.known import Checkpoint
from steer.driver.denoisers.negative import CHATS, NegativeGuidance
from steer.driver.denoisers.outputs import RLG, PreferenceGuidance, SwitchAt
from steer.driver.denoisers.parse import parse_blend
from steer.driver.denoisers.scales import linear, window


__all__ = [
    "CHATS",
    "RLG",
    "Blend",
    "Checkpoint",
    "Mix",
    "NegativeGuidance",
    "PreferenceGuidance",
    "SwitchAt",
    "linear",
    "parse_blend",
    "window",
]
