"""Tuned checkpoints beside their base: loaded, and blended with it while sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer.core.lazy import lazy_names


if TYPE_CHECKING:
    from steer.driver.denoisers.blend import Blend as Blend, Mix as Mix
    from steer.driver.denoisers.checkpoints.known import Checkpoint as Checkpoint
    from steer.driver.denoisers.negative import CHATS as CHATS, NegativeGuidance as NegativeGuidance
    from steer.driver.denoisers.outputs import (
        RLG as RLG,
        PreferenceGuidance as PreferenceGuidance,
        SwitchAt as SwitchAt,
    )
    from steer.driver.denoisers.parse import parse_blend as parse_blend
    from steer.driver.denoisers.scales import linear as linear, window as window

_MODULES = {
    "Blend": "steer.driver.denoisers.blend",
    "CHATS": "steer.driver.denoisers.negative",
    "Checkpoint": "steer.driver.denoisers.checkpoints.known",
    "linear": "steer.driver.denoisers.scales",
    "Mix": "steer.driver.denoisers.blend",
    "NegativeGuidance": "steer.driver.denoisers.negative",
    "parse_blend": "steer.driver.denoisers.parse",
    "PreferenceGuidance": "steer.driver.denoisers.outputs",
    "RLG": "steer.driver.denoisers.outputs",
    "SwitchAt": "steer.driver.denoisers.outputs",
    "window": "steer.driver.denoisers.scales",
}

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
