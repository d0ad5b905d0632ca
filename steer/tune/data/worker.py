"""What samples and scores a preference set: with everything loaded once, in any process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer.core.types import Reward
from steer.core.weights.reading import fingerprint
from steer.driver.facts import quiet
from steer.jobs.device import usable_device
from steer.jobs.pipelines import dtype_of, load_pipeline
from steer.jobs.spread.worker import Worker
from steer.rewards import reward
from steer.rewards.parts import identity
from steer.tune.data.config import DataConfig
from steer.tune.data.features import Features, denoiser_of
from steer.tune.data.prompts import Prompt
from steer.tune.data.sampling import LatentSampler, Sample, ScoredLatents


@dataclass(frozen=True)
class TextLayout:
    """Asks for the features of the negative prompt, and those that all prompts share."""

    def __str__(self) -> str:
        return "the text features that prompts share"


@dataclass(frozen=True)
class TextBatch:
    """Asks for prompts' text features."""

    texts: tuple[str, ...]

    def __str__(self) -> str:
        return f"text features of {self.texts[0]!r} to {self.texts[-1]!r}"


@dataclass(frozen=True)
class SampleBatch:
    """Asks for samples of a shard."""

    shard: int
    samples: tuple[Sample, ...]

    def __str__(self) -> str:
        return f"samples {self.samples[0].id} to {self.samples[-1].id}"


Task = TextLayout | TextBatch | SampleBatch
Done = tuple[dict[str, Tensor] | None, dict[str, Tensor]] | dict[str, Tensor] | ScoredLatents
"""Unconditional (if there are any) and shared features; prompts' features; samples."""


class SetWorker(Worker[Task, Done]):
    """Makes text features, and draws and scores samples.

    Its `about` is what samples and scores come from, so that nothing else continues them.

    Args:
        config: What to make.
        prompts: Its prompts.
        pipe: The pipeline, where it is loaded already; else `config.pipeline`.
        rewards: Likewise, one per name in `config.rewards`.

    Raises:
        SteerError, ValueError: What cannot be loaded, or cannot be used in a set.
    """

    def __init__(
        self,
        config: DataConfig,
        prompts: Sequence[Prompt],
        pipe: Any = None,
        rewards: Sequence[Reward] | None = None,
    ) -> None:
        self.config, self.prompts = config, prompts
        device = usable_device(config.device)
        if rewards is None:  # first: they are cheap to get wrong
            rewards = [reward(name, device=device) for name in config.rewards]
        if pipe is None:
            dtype = dtype_of(config.dtype, device, config.pipeline)
            pipe = load_pipeline(config.pipeline, device, dtype)
        self.pipe, self.rewards = pipe, list(rewards)
        self.sampler = LatentSampler(self.pipe, self.rewards, config)
        self.about = self._models()
        self._features: Features | None = None
        self._sampling: ExitStack | None = None

    def work(self, unit: Task) -> Done:
        """Text features, or samples."""
        if isinstance(unit, SampleBatch):
            return self._sample(unit)
        if self._features is None:
            texts = [self.prompts[0].text, self.prompts[-1].text]
            other = texts[1] if len(self.prompts) > 1 else f"not {texts[0]}"
            self._features = Features(self.pipe, self.config.arguments(), (texts[0], other))
        if isinstance(unit, TextBatch):
            return self._features(list(unit.texts))
        return self._features.unconditional, self._features.layout.shared

    def close(self) -> None:
        """Put the pipeline's bar back, and its denoiser's own forward."""
        if self._sampling is not None:
            self._sampling.close()
        self._sampling = None

    def _sample(self, batch: SampleBatch) -> ScoredLatents:
        if self._sampling is None:
            self._sampling = ExitStack()
            self._sampling.enter_context(quiet(self.pipe))
            if self.config.compile:
                self._sampling.enter_context(_compilation(denoiser_of(self.pipe)[1]))
        return self.sampler.draw(batch.samples, self.prompts)

    def _models(self) -> dict[str, Any]:
        name, module = denoiser_of(self.pipe)
        parameter = next(module.parameters())
        found = [identity(reward) for reward in self.rewards]
        return {
            "pipeline": type(self.pipe).__name__,
            "denoiser": name,
            "weights": fingerprint(module),
            "scheduler": type(self.pipe.scheduler).__name__,
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "device": parameter.device.type,
            "rewards": {n: found[i][1] for i, n in enumerate(self.config.rewards)},
        }


@contextmanager
def _compilation(denoiser: torch.nn.Module) -> Iterator[None]:
    """The denoiser's forward compiled; on a CPU with its weights packed in advance."""
    own = denoiser.forward
    cpu = next(denoiser.parameters()).device.type == "cpu"
    options: dict[str, Any] = {"freezing": True} if cpu else {}
    denoiser.forward = torch.compile(own, options=options)
    try:
        yield
    finally:
        denoiser.forward = own
