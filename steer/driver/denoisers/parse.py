"""Blends written as text, as in a command or a configuration file: read, never evaluated."""

from __future__ import annotations

from typing import Any

from steer.core.expressions import Grammar
from steer.driver.denoisers.blend import Blend
from steer.driver.denoisers.checkpoints.known import Checkpoint
from steer.driver.denoisers.negative import CHATS, NegativeGuidance
from steer.driver.denoisers.outputs import RLG, PreferenceGuidance, SwitchAt
from steer.driver.denoisers.scales import linear, window


_BLENDS = {
    blend.__name__: blend for blend in (RLG, SwitchAt, NegativeGuidance, CHATS, PreferenceGuidance)
}
_PARTS: dict[str, Any] = {"linear": linear, "window": window, "Checkpoint": Checkpoint}
_GRAMMAR = Grammar(
    "blend",
    {**_BLENDS, **_PARTS},
    tuple(_BLENDS),
    hint=f"there are {', '.join(_BLENDS)}, written like 'RLG(2.0)'",
)


def parse_blend(text: str) -> Blend:
    """The blend that `text` names: `"RLG(2.0)"`, `"rlg(window(2.0, 0.2, 1.0))"`.

    Names may be written in any case and with dashes; arguments are literals, schedules or
    `Checkpoint(...)`. `parse_blend(repr(blend))` is the blend again where its models are named by
    text.

    Raises:
        ValueError: An unknown name, something that is not a literal, or arguments that do not fit.
    """
    return _GRAMMAR.read(text)
