"""Loaded weights do something: scores differ between two pictures, and between two prompts.

Files have been published whose adapters are all zero: they load, fit, and score everything alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steer.core.errors import CheckpointError
from steer.core.types import Reward
from steer.rewards.parts import identity


PROMPTS = ("a red circle", "a blue square")
SIDE = 64
FRAMES = 4
NEAR = 1e-6
"""Scores that are this close, as a share of the larger, are the same."""

_alive: set[tuple[str, str]] = set()


def check_alive(reward: Reward, source: str) -> None:
    """See that a reward tells a black picture from a red circle, and two prompts from each other.

    One batch of three small pictures, once per process for the same name and version; prompts are
    left out where the reward does not read them.

    Args:
        reward: For images, or for videos, which are stills then.
        source: Where its weights come from, for the error.

    Raises:
        CheckpointError: It does not, or has no finite score for any of them.
    """
    key = identity(reward)
    if key in _alive:
        return
    black, circle = pictures()
    rows = [(black, 0), (circle, 0), (circle, 1)][: 3 if reward.needs_prompt else 2]
    shown = torch.stack([x for x, _ in rows])
    if getattr(reward, "least_frames", 1) > 1:
        shown = shown[:, None].expand(-1, FRAMES, -1, -1, -1)
    with torch.no_grad():
        found = reward(shown, [PROMPTS[i] for _, i in rows])
    scores = found.tolist()
    if not found.isfinite().any():
        _refuse(reward, source, f"there is no finite score among {scores}")
    if _same(*scores[:2]):
        _refuse(reward, source, f"a black picture and a red circle both score {scores[0]:g}")
    if reward.needs_prompt and _same(*scores[1:]):
        _refuse(reward, source, f"two prompts both give {scores[1]:g} for one picture")
    _alive.add(key)


def pictures() -> Tensor:
    """A black picture, and a red circle on white: `(2, 3, SIDE, SIDE)` in [0, 1]."""
    axis = torch.linspace(-1, 1, SIDE)
    inside = axis[:, None] ** 2 + axis**2 < 0.4
    red = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    circle = torch.where(inside, red, torch.ones(3, 1, 1))
    return torch.stack([torch.zeros_like(circle), circle])


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= NEAR * max(abs(a), abs(b))


def _refuse(reward: Reward, source: str, why: str) -> None:
    way = "download the file again, or pass another one"
    if source.startswith("http"):
        way = "see that the server runs the model that you mean"
    raise CheckpointError(
        f"reward {reward.name!r}: the weights of {source} are dead or damaged, {why}: {way}"
    )
