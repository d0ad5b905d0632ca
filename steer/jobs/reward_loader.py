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
    """The names in a reward's text: of one reward itself, of weights each; ValueError if bad."""
    from steer.rewards.parse import parse_reward

    spec = parse_reward(text)
    return [spec] if isinstance(spec, str) else list(spec)


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
        from steer.rewards.parse import parse_reward

        spec = parse_reward(text)
        if isinstance(spec, str):
            return self._sized(self._named(spec))
        parts = {self._named(name): weight for name, weight in spec.items()}
        return self._sized(registry.reward(parts, device=usable_device(self.device)))

    def _named(self, name: str) -> Reward:
        from steer.rewards import registry

        return registry.reward(
            name,
            checkpoint=self.checkpoints.get(name),
            device=usable_device(self.device),
            dtype=None if self.dtype == "auto" else self.dtype,
        )

    def _sized(self, reward: Any) -> Reward:
        """A copy that takes `images_per_batch` images at once, where it counts them."""
        from steer.rewards.base import BaseReward

        limit = self.images_per_batch
        if limit is None or not isinstance(reward, BaseReward) or reward.batch is None:
            return reward
        reward = copy.copy(reward)
        reward.batch = limit
        return reward
