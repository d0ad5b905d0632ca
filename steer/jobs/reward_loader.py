"""Rewards as commands and configuration files write them, loaded with local weights.

Importing this module does not import torch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer.core.files.atomic import file_sha256
from steer.jobs.device import usable_device


if TYPE_CHECKING:
    from steer.core.types import Reward


def reward_parts(text: str) -> list[str]:
    """The names of the single rewards in a reward's text; ValueError where it cannot be read."""
    from steer.rewards.text import names_in

    return names_in(text)


def scale_stamp(path: str) -> str:
    """A file of scales as text that tells other contents from it.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        return f"{path}@{file_sha256(Path(path).expanduser())[:8]}"
    except OSError as error:
        raise ValueError(
            f"scale={path!r}: cannot be read ({error.strerror}); write one with steer scale"
        ) from error


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

    def load(self, text: str, scale: str | None = None) -> Reward:
        """The reward that `text` names: one, weights, or an ensemble.

        Args:
            text: As commands and configuration files write it.
            scale: File of scales that it is put on, as `steer.reward(scale=...)` does.

        Raises:
            ValueError: An unknown reward, device or dtype; scales of another reward, or of one that
                only ranks.
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
            scale=None if scale is None else Path(scale).expanduser(),
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
