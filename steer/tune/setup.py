"""What a run needs before its first step, and what is refused there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import AdamW

from steer.core.errors import TuneError
from steer.tune.batches import Order
from steer.tune.config import Targets, TuneConfig
from steer.tune.dataset import Dataset
from steer.tune.goal import Objective
from steer.tune.goals import Advantaged, Labelled
from steer.tune.labels import Labels, found_labels, make_advantages, make_labels
from steer.tune.masking import Masking, check_goal, check_tokens, is_masked
from steer.tune.noising import Noising
from steer.tune.process import Process
from steer.tune.tables import Pairs, list_names


@dataclass(frozen=True)
class Material:
    """What is trained on.

    Attributes:
        data: The images.
        labels: Of all of them, where the objective needs labels.
        order: The rows (or pairs) of every batch.
    """

    data: Dataset
    labels: Labels | None
    order: Order

    @classmethod
    def of(cls, config: TuneConfig, data: Dataset, start: int = 0, seed: int | None = None) -> Self:
        """What a configuration makes of a dataset.

        Args:
            config: Of the run.
            data: Scored, or with pairs.
            start: The step that gets the first batch.
            seed: Of the order; None takes the configuration's.

        Raises:
            TuneError: No pairs where they are needed, scores that no threshold separates, or fewer
                rows than a batch.
        """
        rows, labels = training_rows(config.objective, data, config.targets)
        share = getattr(config.objective, "positive_share", None)
        known = None if labels is None else labels.labels.numpy()[rows]
        prompts = None if config.objective.pairs else data.prompt_ids[rows]
        own = config.seed if seed is None else seed
        order = Order(rows, config.batch, own, known, share, config.siblings, prompts, start)
        return cls(data, labels, order)


def training_rows(
    goal: Objective, data: Dataset, targets: Targets | None = None
) -> tuple[NDArray[np.int64], Labels | None]:
    """The rows (or pairs) that are trained on, and labels of all images where they are needed.

    An objective that samples while it trains takes all images of the split `"train"`.

    Raises:
        TuneError: Pairs are needed and there are none; scores that no threshold separates.
    """
    if goal.pairs:
        if data.pairs is None:
            raise TuneError(
                f"objective={goal.name!r}: learns from pairs, and {str(data.folder)!r} has none; "
                "make the dataset with `pairs`, or use tgo, kto or sft"
            )
        if goal.takes_votes:
            _check_votes(goal, data, data.pairs)
        _tell_unpaired(data, data.pairs)
        return np.flatnonzero(data.pairs.split == "train"), None
    if not goal.labelled:
        return np.flatnonzero(data.split == "train"), None
    if targets == "winners":
        labels = found_labels(data, both=goal.name != "sft")
    elif isinstance(goal, Advantaged):
        labels = make_advantages(goal, data)
    else:
        assert isinstance(goal, Labelled)
        labels = make_labels(goal, data)
    used = data.split == "train"
    if goal.name == "sft":
        used &= labels.labels.numpy() == 1
    return np.flatnonzero(used), labels


def _check_votes(goal: Objective, data: Dataset, pairs: Pairs) -> None:
    """Refuse margins that are differences of scores where shares of votes are taken."""
    made: Any = (data.manifest.get("config") or {}).get("pairs") or {}
    consensus = made.get("consensus", "majority")
    largest = float(np.abs(pairs.margin).max(initial=0))
    if consensus != "majority" or largest > 1:
        raise TuneError(
            f"objective={goal.name!r}: takes margins for shares of votes, and those of "
            f"{str(data.folder)!r} are differences of scores (up to {largest:.3g}); make pairs "
            "with consensus: majority, or set span, the reward's largest minus smallest score"
        )


def _tell_unpaired(data: Dataset, pairs: Pairs) -> None:
    """Warn of training prompts that no pair is of: nothing is learned from their images."""
    paired = set(data.prompt_ids[pairs.winner].tolist())
    used = zip(data.prompt_ids.tolist(), data.prompts, data.split.tolist(), strict=True)
    lost = {text: None for number, text, split in used if split == "train" and number not in paired}
    if lost:
        warnings.warn(
            f"pairs.parquet: {len(lost)} prompt(s) are without a counterpart to any of their "
            f"images and are not trained on: {list_names(list(lost))}",
            stacklevel=2,
        )


def check_shares(config: TuneConfig, processes: int) -> None:
    """Refuse a batch that does not divide evenly."""
    if config.batch % (processes * config.accumulate):
        raise TuneError(
            f"batch={config.batch}: must divide by processes x accumulate = {processes} x "
            f"{config.accumulate}"
        )


def check_latents(data: Dataset, model: Any, process: Process) -> None:
    """Refuse latents of another denoiser."""
    if isinstance(process, Masking):
        check_tokens(data, model)
        return
    channels, shape = model.config.in_channels, data.latent_shape
    if channels not in (shape[0], shape[-1]) or not data.latents([0]).is_floating_point():
        raise TuneError(
            f"data={str(data.folder)!r}: latents of shape {shape} do not fit a denoiser with "
            f"{channels} channels; make the dataset with the pipeline that is tuned"
        )


def forward_process(config: TuneConfig, pipe: Any, data: Dataset | None) -> Process:
    """What spoils images, at the timesteps (or shares of masks) that are trained.

    The timesteps' scale is the configuration's, else the dataset's.

    Raises:
        TuneError: A denoiser or scheduler that is not known, an empty range, or an objective or
            timesteps that a masked generator does not have.
    """
    if is_masked(pipe):
        check_goal(config.objective, pipe)
        if config.timestep_scale is not None:
            raise TuneError(
                f"timestep_scale={config.timestep_scale:g}: masked generators "
                f"({type(pipe).__name__}) have no timesteps; leave it out"
            )
        return _range(config, Masking.of(pipe))
    scale = config.timestep_scale
    if scale is None and data is not None:
        scale = data.manifest.get("timestep_scale")
    return _range(config, Noising.of(pipe, scale))


def _range(config: TuneConfig, process: Process) -> Process:
    return process if config.noise_range is None else process.between(*config.noise_range)


def load_pipeline(config: TuneConfig) -> Any:
    """The pipeline to tune, on the CPU."""
    from steer.jobs.pipelines import load_pipeline as load

    return load(config.pipeline, "cpu", getattr(torch, config.base_dtype))


def make_optimizer(config: TuneConfig, parameters: Sequence[nn.Parameter]) -> tuple[AdamW, Any]:
    """AdamW, and the schedule of its learning rate."""
    from diffusers.optimization import get_scheduler

    optimizer = AdamW(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    kind = config.schedule
    if kind == "constant" and config.warmup:
        kind = "constant_with_warmup"
    schedule = get_scheduler(
        kind, optimizer, num_warmup_steps=config.warmup, num_training_steps=config.steps
    )
    return optimizer, schedule
