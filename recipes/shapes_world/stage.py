"""The training loop that every stage shares: `steer.tune.scorer.loop` with the world's habits."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from steer.tune.scorer import loop
from steer.tune.scorer.loop import (
    Loss,
    Names,
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
    names: Names | None = None,
) -> None:
    """`loop.train`, with a checkpoint every `CHECKPOINT_EVERY` steps."""
    every = CHECKPOINT_EVERY
    loop.train(
        name, module, loss, recipe, folder, seed, names=names, checkpoint_every=every, progress=True
    )
