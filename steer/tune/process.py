"""What training asks of a forward process, be it noise on latents or masks on tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor


class Process(Protocol):
    """How clean images are spoiled, and what a model's answer to that is worth.

    `noise` (B, *latent) is standard normal; `index` (B,) are places in the process's grid.
    """

    def __len__(self) -> int:
        """Of the grid."""
        ...

    def between(self, low: float, high: float) -> Self:
        """The part of the grid between two shares of it: 0 spoils the least, 1 the most."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        ...

    def add_noise(self, x0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Spoiled images, (B, *latent)."""
        ...

    def predict(
        self, model: Any, noisy: Tensor, index: Tensor, text: Mapping[str, Tensor]
    ) -> Tensor:
        """The model's answer; `text` are its further arguments by dotted name."""
        ...

    def error(self, prediction: Tensor, x0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """What stands for minus the log-likelihood of the images, (B,)."""
        ...

    def change(self, prediction: Tensor, old: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """How far an answer is from another one, (B,)."""
        ...
