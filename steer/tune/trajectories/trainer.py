"""The training loop of objectives that sample while they train."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from steer.core.errors import TuneError
from steer.core.types import Reward
from steer.driver.facts import parts
from steer.rewards.parts import is_relative
from steer.tune.checkpointing import fingerprint
from steer.tune.config import TuneConfig
from steer.tune.data.prompts import read_prompts
from steer.tune.dataset import Dataset
from steer.tune.sampled_goals import ImageReFL, PolicyGradient, RewardGradient
from steer.tune.trainer import Trainer
from steer.tune.trajectories.gradients import (
    WAY_OUT,
    ImageLoader,
    ImageLosses,
    RewardLosses,
    RunLoader,
)
from steer.tune.trajectories.policies import Chosen, Drawer, Drawn, PolicyLosses
from steer.tune.trajectories.sampler import Sampler


class SampledTrainer(Trainer):
    """One run on its own samples; `steer.tune.tune` is the way in.

    Args:
        config: With `sampling`.
        pipe, progress: As for `Trainer`.
        reward: What is optimised; loaded by name when left out.

    Raises:
        TuneError: The reward cannot be used, or the pipeline does not fit the configuration.
        ValueError: An unknown reward.
    """

    def __init__(
        self,
        config: TuneConfig,
        pipe: Any = None,
        progress: bool = False,
        reward: Reward | None = None,
    ) -> None:
        assert config.sampling is not None
        self.sampling = config.sampling
        given = self.sampling.prompts
        self.prompts = [] if given is None else [prompt.text for prompt in read_prompts(given)]
        self.reward = _load(self.sampling.reward, config.cpu) if reward is None else reward
        _check_reward(config, self.reward)
        super().__init__(config, pipe, progress)
        if self.accelerator.num_processes > 1:
            raise TuneError("sampling: run in one process; start without accelerate launch")
        self.pipe.to(self.accelerator.device)
        for name, part in parts(self.pipe).items():
            if name != self.policy.name:
                part.requires_grad_(False)
        data = self.data if config.data else None
        if data is not None and given is None:
            rows = zip(data.prompts, data.split.tolist(), strict=True)
            self.prompts = list(dict.fromkeys(text for text, split in rows if split == "train"))
        self.sampler = Sampler(config, self.pipe, self.prompts)
        self._data_hash = _digest(self.prompts)
        self.manifest = {"prompts": len(self.prompts), "reward": self.reward.name}
        if data is not None:
            self.sampler.check(data, decoded=given is None)
            self._data_hash += fingerprint(data)
            self.manifest["dataset"] = dict(data.manifest)
        self._drawn: tuple[int, Drawn] | None = None
        self._begin()

    def _begin(self) -> None:
        """What makes batches, and losses of them."""
        goal, config = self.config.objective, self.config
        given = (self.accelerator, self.policy, self.model)
        if isinstance(goal, RewardGradient):
            kind, real = RewardLosses, self.losses
            real.guidance = self.sampler.guidance
            if isinstance(goal, ImageReFL):
                kind, self.loader = ImageLosses, ImageLoader(self.loader, self.data)
            else:
                images = self.loader if config.data else None
                self.loader = RunLoader(self.prompts, config.seed, config.batch, images)
            self.losses: Any = kind(goal, self.sampler, self.reward, *given, config.seed, real)
            return
        assert isinstance(goal, PolicyGradient)
        if not self.sampler.noisy:
            raise TuneError(
                f"sampling.steps={self.sampling.steps}: no step of the run draws noise, so "
                f"{goal.name} has no density to raise; sample in more steps"
            )
        self.losses = PolicyLosses(goal, self.sampler, *given)
        self.loader = _Rounds(self)
        self._drawer = Drawer(
            self.sampler,
            goal,
            self.reward,
            self.accelerator,
            self.model,
            self.prompts,
            self.sampling.images,
            config.batch * self.sampling.updates,
            config.batch // config.accumulate,
            config.seed,
        )

    def choose(self, step: int) -> Chosen:
        """The runs of an update of policy gradients; a round's are drawn at its first.

        In the middle of a round, as after an interruption, they are drawn again by the policy that
        drew them.
        """
        updates, batch = self.sampling.updates, self.config.batch
        number, place = divmod(step, updates)
        if self._drawn is None or self._drawn[0] != number:
            if place == 0 and updates > 1:
                self.old = self.policy.weights()
            held = self.policy.holding(self.old) if place and self.old else nullcontext()
            with held:
                self._drawn = (number, self._drawer.draw(number))
        drawn = self._drawn[1]
        return Chosen(drawn, slice(place * batch, (place + 1) * batch), drawn.actions)

    def _guidance(self, data: Dataset) -> None:
        """The runs' own, of which the dataset knows nothing."""

    def evaluate(self) -> dict[str, float]:
        """Nothing: no images are held out; `validation.prompts` draws grids."""
        return {}


class _Rounds:
    """A trainer's runs as a loader."""

    def __init__(self, trainer: SampledTrainer) -> None:
        self.at = trainer.choose

    def close(self) -> None:
        """Nothing is read."""


def _load(name: str, cpu: bool) -> Reward:
    from steer.rewards import reward

    return reward(name, device="cpu" if cpu else None)


def _check_reward(config: TuneConfig, reward: Reward) -> None:
    """Refuse what cannot be optimised this way, before anything is sampled."""
    name = config.objective.name
    if is_relative(reward):
        raise TuneError(
            f"sampling.reward={reward.name!r}: compares candidates, so an image has no score of "
            "its own; name one of its parts"
        )
    if getattr(reward, "least_frames", 1) > 1:
        raise TuneError(f"sampling.reward={reward.name!r}: scores videos; name one of images")
    if isinstance(config.objective, RewardGradient) and not reward.differentiable:
        raise TuneError(
            f"objective={name!r}: needs the reward's gradient, and {reward.name!r} is not "
            f"differentiable (it declares so); {WAY_OUT}"
        )


def _digest(prompts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]
