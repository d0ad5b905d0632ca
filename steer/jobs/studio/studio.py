"""What the page works with: a loaded pipeline, its rewards and judges, and a folder for results."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steer.core.checks import one_of
from steer.core.errors import SteerError
from steer.jobs.device import usable_device
from steer.jobs.pipelines import default_steps, dtype_of, load_pipeline
from steer.jobs.reward_loader import RewardLoader
from steer.jobs.sample_job import SampleJob
from steer.jobs.sampling import Sampler
from steer.jobs.studio.cost import Pace
from steer.methods.text import sized_methods
from steer.pipeline.guided import Guided, guided


_WEIGHED = ("a red circle", 'a sign that says "red"')  # the second for `ocr`, which wants quotes
_STEPS = 12  # enough for drafts, so that the solver is asked whether it can begin in the middle


@dataclass(eq=False)
class Studio:
    """One pipeline for all visitors of the page, loaded once.

    Attributes:
        base: What every run has in common: pipeline, judges, device. Its reward is the first.
        rewards: What the page may choose among.
        folder: Where the results of runs go.
        pipe: The pipeline.
        steps: Of a plain call that names none.
        methods: What the page may choose among, besides the default.
        guides: By reward a guided pipeline, which knows what its runs have taught.
        paces: By reward, how fast its latest run was.
        judges: By reward, what is reported beside it.
    """

    base: SampleJob
    rewards: tuple[str, ...]
    folder: Path
    pipe: Any = None
    steps: int = 0
    methods: list[str] = field(default_factory=sized_methods)
    guides: dict[str, Guided] = field(default_factory=dict)
    paces: dict[str, Pace] = field(default_factory=dict)
    judges: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _loaded: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        pipeline: str = "shapes",
        rewards: Sequence[str] = ("shapes",),
        judges: Sequence[str] = (),
        device: str = "auto",
        dtype: str = "auto",
    ) -> Studio:
        """Load everything that a run may need, and see what a row, a decode, a score cost.

        Args:
            folder: Where the results of runs go; there already.
            pipeline, device, dtype: As for `steer sample`.
            rewards: What the page may choose among, at least one.
            judges: Reported, never optimised; `"auto"` is one of another family for each reward.

        Raises:
            SteerError, ValueError: Something that is not to be had; a reward named twice.
        """
        if not rewards or len(set(rewards)) < len(rewards):
            raise ValueError(f"rewards={list(rewards)!r}: name at least one, and each once")
        given = {"pipeline": pipeline, "judges": tuple(judges), "device": usable_device(device)}
        first = SampleJob(_WEIGHED, reward=rewards[0], dtype=dtype, **given)
        studio = cls(first, tuple(rewards), folder)
        found = dtype_of(dtype, first.device, pipeline)
        studio.pipe = load_pipeline(pipeline, first.device, found)
        studio.pipe.set_progress_bar_config(disable=True)
        studio.steps = default_steps(studio.pipe, pipeline)
        for reward in rewards:
            held = SampleJob(_WEIGHED, reward=reward, **given).judges
            studio.judges[reward] = held
            judge = [studio.reward(name) for name in held]
            studio.guides[reward] = guided(studio.pipe, studio.reward(reward), judge=judge)
            weigh(studio.guides[reward])
        return studio

    def reward(self, name: str) -> Any:
        """A reward or judge, loaded once."""
        if name not in self._loaded:
            self._loaded[name] = RewardLoader(self.base.device).load(name)
        return self._loaded[name]

    def sampler(self, job: SampleJob) -> Sampler:
        """What draws a job with this pipeline, and knows what the runs before have taught."""
        sampler = Sampler(job, self.pipe, self.reward)
        before = self.guides[job.reward]
        sampler.guided.weights, sampler.guided.widths = before.weights, before.widths
        return sampler

    def job(self, reward: str, method: str | None, **more: Any) -> SampleJob:
        """The job of a run. Bad values raise ValueError."""
        one_of("reward", reward, self.rewards)
        if method is not None:
            one_of("method", method, self.methods)
        own = {"reward": reward, "method": method, "judges": self.judges[reward]}
        return replace(self.base, **own, **more)

    def new_folder(self) -> Path:
        """A folder for a run, whose name nobody guesses."""
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir(parents=True)
        return folder


def weigh(call: Guided) -> None:
    """A short call, so that what one of each costs is known; whatever fails will fail in a run."""
    for prompt in _WEIGHED:
        with warnings.catch_warnings(), suppress(SteerError, ValueError, TypeError, RuntimeError):
            warnings.simplefilter("ignore")
            call(prompt, num_inference_steps=_STEPS, compute=1.5)
            return
