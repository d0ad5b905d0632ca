"""Rewards as commands and configuration files write them, loaded with local weights.

Importing this module does not import torch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from steer.jobs.device import usable_device


if TYPE_CHECKING:
    from steer.core.types import Reward


def reward_parts(text: str) -> list[str]:
    """The names of the single rewards in a reward's text; ValueError where it cannot be read."""
    from steer.rewards.text import names_in

    return names_in(text)


@dataclass(frozen=True)
class RewardLoader:
    """Where a job's rewards compute, in which precision, and from which weights.

    Attributes:
        device: `"auto"` or a torch device.
        dtype: `"auto"` (each reward's own default) or a torch dtype's name.
        checkpoints: Local weights by reward name.
        images_per_batch: Images that a reward takes at once; None leaves each its own choice.
    """

    device: str = "auto"
    dtype: str = "auto"
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    images_per_batch: int | None = None

    def load(self, text: str) -> Reward:
        """The reward that `text` names: one, weights, or an ensemble.

        Raises:
            ValueError: An unknown reward, device or dtype.
            CheckpointError: Weights that cannot be found, read, or do not fit.
        """
        from steer.rewards import registry
        from steer.rewards.text import names_in, read_mixture

        names = names_in(text)
        own = {name: path for name, path in self.checkpoints.items() if name in names}
        reward = registry.reward(
            text,
            checkpoint=(own if read_mixture(text) else own.get(text)) or None,
            device=usable_device(self.device),
            dtype=None if self.dtype == "auto" else self.dtype,
        )
        return self._set_batch(reward)

    def _set_batch(self, reward: Any) -> Reward:
        """A copy that takes `images_per_batch` images at once, where it counts them."""
        from steer.rewards.base import BaseReward

        limit = self.images_per_batch
        if limit is None or not isinstance(reward, BaseReward) or reward.batch is None:
            return reward
        reward = copy.copy(reward)
        reward.batch = limit
        return reward
