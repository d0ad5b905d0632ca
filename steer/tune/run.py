"""The way in: a configuration to tuned weights, from a dataset or in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steer.core.errors import TuneError
from steer.core.types import Reward
from steer.tune.config import TuneConfig
from steer.tune.rounds.loop import Rounds
from steer.tune.trainer import Trainer
from steer.tune.trajectories.trainer import SampledTrainer


def tune(
    config: TuneConfig,
    pipe: Any = None,
    progress: bool = False,
    rewards: Sequence[Reward] | None = None,
) -> Path:
    """Train, continuing what is in `config.out`, and return the folder of the tuned weights.

    Args:
        config: What to do.
        pipe: The pipeline to tune, in place; loaded by `config.pipeline` when left out.
        progress: Show a bar on stderr.
        rewards: Of `config.rounds` or `config.sampling`, where they are loaded already: the reward,
            and the judge where one is named.

    Returns:
        `out/tuned`: `pytorch_lora_weights.safetensors`, or `unet/` (`transformer/`); and
        `tune.json`, what it was made from.

    Raises:
        TuneError: The configuration, the dataset or a checkpoint cannot be used.
        NonFiniteError: The loss became NaN or infinite; the last good checkpoint is kept.
        RewardError: A score of `rounds` or `sampling` that is not finite.
        Stopped: Interrupted (SIGINT, SIGTERM) while training; a checkpoint was written.
        KeyboardInterrupt: Interrupted while sampling; what is finished is kept.
    """
    if config.rounds is not None:
        return Rounds(config, pipe, progress, rewards).run()
    if rewards is not None and config.sampling is None:
        raise TuneError("rewards: are for rounds and sampling; a dataset has its scores")
    trainer = _trainer(config, pipe, progress, rewards)
    try:
        return trainer.run()
    finally:
        trainer.close()


def _trainer(
    config: TuneConfig, pipe: Any, progress: bool, rewards: Sequence[Reward] | None
) -> Trainer:
    if config.sampling is None:
        return Trainer(config, pipe, progress)
    if rewards is not None and len(rewards) != 1:
        raise TuneError(f"rewards: {len(rewards)} given, and sampling has one")
    return SampledTrainer(config, pipe, progress, None if rewards is None else rewards[0])
