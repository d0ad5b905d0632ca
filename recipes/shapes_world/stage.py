"""The training loop that every stage shares: `steer.tune.reward.loop` with the world's habits."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from steer.tune.scorer import loop
from steer.tune.scorer.loop import (
    Held,
    Loss,
    Optimisation,
    learning_rate as learning_rate,
    rank as rank,
    share as share,
    world_size as world_size,
)


CHECKPOINT_EVERY = 250


def train(
    name: str,
    module: nn.Module,
    loss: Loss,
    recipe: Optimisation,
    folder: Path,
    seed: int,
    held: Held | None = None,
) -> None:
    """`loop.train`, with a checkpoint every `CHECKPOINT_EVERY` steps."""
    every = CHECKPOINT_EVERY
    loop.train(name, module, loss, recipe, folder, seed, held=held, checkpoint_every=every)
