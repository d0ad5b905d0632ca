"""Which samples a set has, and how they are drawn and scored: plain calls, in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.core.errors import RewardError, TuneError
from steer.core.seeds import text_seed
from steer.core.types import Reward
from steer.methods.selection.best_of_n import BestOfN
from steer.pipeline.guided import Guided
from steer.rewards.parts import is_relative
from steer.tune.data.config import DataConfig
from steer.tune.data.prompts import Prompt


@dataclass(frozen=True)
class Sample:
    """One image to be: prompt `prompt_id`, its `number`-th, from `seed`.

    `searched` is None in sets without a search, else whether a search finds this one.
    """

    prompt_id: int
    number: int
    seed: int
    searched: bool | None = None

    @property
    def id(self) -> str:
        """A name that is unique in its set."""
        name = f"p{self.prompt_id:05d}-s{self.number:03d}"
        return f"{name}-plain" if self.searched is False else name


def plan(config: DataConfig, prompts: Sequence[Prompt]) -> list[list[Sample]]:
    """The samples of every shard, prompt by prompt; a prompt is wholly in one shard."""
    kinds: tuple[bool | None, ...] = (None,)
    if config.search is not None:
        kinds = (True, False) if config.search.plain else (True,)
    size = max(1, config.shard // (config.per_prompt * len(kinds)))
    numbers, rows = range(config.per_prompt), range(len(prompts))
    return [
        [
            Sample(i, k, _seed(config, prompts[i].text, k), kind)
            for i in rows[j : j + size]
            for kind in kinds
            for k in numbers
        ]
        for j in range(0, len(prompts), size)
    ]


def _seed(config: DataConfig, text: str, number: int) -> int:
    if isinstance(config.seeds, int):
        return text_seed(config.seed, text, number)
    return config.seeds[number]


def splits(config: DataConfig, prompts: int) -> list[str]:
    """`"train"` or `"test"` for every prompt; the share of the latter is exact."""
    test = round(config.test_share * prompts)
    order = np.random.default_rng([config.seed, 41]).permutation(prompts)
    chosen = set(order[:test].tolist())
    return ["test" if i in chosen else "train" for i in range(prompts)]


@dataclass(frozen=True)
class ScoredLatents:
    """A batch: latents as the denoiser sees them `(B, *latent)`, and scores by reward `(B,)`."""

    latents: Tensor
    scores: dict[str, NDArray[np.float64]]


class LatentSampler:
    """Draws and scores samples with plain calls of a pipeline, or with a search.

    A sample is what the pipeline gives for its prompt from `torch.Generator().manual_seed(seed)`,
    or what a search finds from there; which others share its batch decides no more than the last
    bits.

    Args:
        pipe: A diffusers pipeline.
        rewards: The first is the main one.
        config: The call's arguments.

    Raises:
        TuneError: A reward that compares candidates, whose scores mean nothing alone.
    """

    def __init__(self, pipe: Any, rewards: Sequence[Reward], config: DataConfig) -> None:
        for name, reward in zip(config.rewards, rewards, strict=True):
            if is_relative(reward):
                raise TuneError(
                    f"rewards: {name!r} compares candidates, so an image has no score of its own; "
                    "name its parts as several rewards and pair with consensus"
                )
        self.names = tuple(config.rewards)
        self.arguments = config.arguments()
        judges = list(
            rewards[1:]
        )  # not `guided`, which warns of judges: plain calls search nothing
        self.plain = Guided(pipe, rewards[0], method=BestOfN(1), judge=judges, lane_width=1)
        self.search = None
        if config.search is not None:
            self.search = Guided(pipe, rewards[0], judge=judges, **config.search.effort())

    def draw(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> ScoredLatents:
        """One batch.

        Raises:
            RewardError: A score that is not finite; names the sample, its prompt and seed.
        """
        kinds = [
            [i for i, s in enumerate(samples) if bool(s.searched) is kind] for kind in (False, True)
        ]
        order = torch.tensor([i for rows in kinds for i in rows]).argsort()
        drawn = [self._draw([samples[i] for i in rows], prompts) for rows in kinds if rows]
        latents = torch.cat([part.latents for part in drawn])[order]
        scores = {
            name: np.concatenate([part.scores[name] for part in drawn])[order.numpy()]
            for name in self.names
        }
        return ScoredLatents(latents, scores)

    def _draw(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> ScoredLatents:
        """Samples of one kind."""
        guided = self.search if samples[0].searched else self.plain
        assert guided is not None
        texts = [prompts[s.prompt_id].text for s in samples]
        generators = [torch.Generator().manual_seed(s.seed) for s in samples]
        try:
            out = guided(texts, generator=generators, output_type="latent", **self.arguments)
        except RewardError as error:
            held = f"{samples[0].id} to {samples[-1].id}"
            raise RewardError(f"samples {held}: {error}") from error
        judged = list(out.report.judges.values())
        columns = dict(zip(self.names, [out.rewards, *judged], strict=True))
        for name, values in columns.items():
            for sample, text, value in zip(samples, texts, values, strict=True):
                if not math.isfinite(value):
                    raise RewardError(
                        f"reward {name!r} is {value} for {sample.id} ({text!r}, seed "
                        f"{sample.seed}): score in float32, or leave this prompt out"
                    )
        scores = {k: np.asarray(v, dtype=np.float64) for k, v in columns.items()}
        return ScoredLatents(out[0].detach().cpu(), scores)
