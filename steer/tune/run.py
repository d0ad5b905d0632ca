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
        rewards: Of `config.rounds`, where they are loaded already: the reward, and the judge where
            one is named.

    Returns:
        `out/tuned`: `pytorch_lora_weights.safetensors`, or `unet/` (`transformer/`); and
        `tune.json`, what it was made from.

    Raises:
        TuneError: The configuration, the dataset or a checkpoint cannot be used.
        NonFiniteError: The loss became NaN or infinite; the last good checkpoint is kept.
        RewardError: A score of `rounds` that is not finite.
        Stopped: Interrupted (SIGINT, SIGTERM) while training; a checkpoint was written.
        KeyboardInterrupt: Interrupted while sampling; what is finished is kept.
    """
    if config.rounds is not None:
        return Rounds(config, pipe, progress, rewards).run()
    if rewards is not None:
        raise TuneError("rewards: are for rounds; a dataset has its scores")
    trainer = Trainer(config, pipe, progress)
    try:
        return trainer.run()
    finally:
        trainer.close()
