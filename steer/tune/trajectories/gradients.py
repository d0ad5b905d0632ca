"""Updates by the reward's own gradient: every row is a run of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor

from steer.core.errors import TuneError
from steer.core.seeds import row_seed
from steer.core.types import Reward
from steer.tune.backprop import Cut, aligned, renoised_last, reward_loss, run
from steer.tune.batches import Stream
from steer.tune.loader import pieces
from steer.tune.policy import Policy
from steer.tune.sampled_goals import DirectAlign, RewardGradient
from steer.tune.trajectories.sampler import Sampler


@dataclass(frozen=True)
class Runs:
    """Runs of one update: prompts, and the seeds of all their randomness.

    Attributes:
        prompts, seeds: Of every row.
        step: Of the update.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    step: int

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"{p!r} from {s}" for p, s in zip(self.prompts, self.seeds, strict=True))

    def __len__(self) -> int:
        return len(self.prompts)

    def parts(self, count: int) -> list[Runs]:
        return [
            Runs(self.prompts[rows], self.seeds[rows], self.step)
            for rows in pieces(len(self), count)
        ]


class RunLoader:
    """Prompts in turns, each with a fresh seed: functions of (seed, step) alone.

    Args:
        prompts: All of them come once before one comes again.
        seed: Of the run.
        rows: Per update.
    """

    def __init__(self, prompts: Sequence[str], seed: int, rows: int) -> None:
        self._prompts, self._seed, self._rows = prompts, seed, rows
        self._stream = Stream(np.arange(len(prompts)), seed, 73)

    def at(self, step: int) -> Runs:
        """Those of an update."""
        chosen: list[int] = self._stream.take(step * self._rows, self._rows).tolist()
        prompts = tuple([self._prompts[i] for i in chosen])
        seeds = tuple(row_seed(self._seed, 79, step, k) for k in range(self._rows))
        return Runs(prompts, seeds, step)

    def close(self) -> None:
        """Nothing is read."""


@dataclass(frozen=True)
class Scored:
    """Of runs.

    Attributes:
        loss, reward: (B,).
        further: (B,) each, by the name it is logged under.
    """

    loss: Tensor
    reward: Tensor
    further: dict[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        """What is logged of the rows, by name."""
        known = {"loss": self.loss, "reward": self.reward, **self.further}
        return {name: value.detach() for name, value in known.items()}


class RewardLosses:
    """From runs to their losses, with the gradient that the objective's cut leaves.

    Args:
        goal: The objective.
        sampler: Of the pipeline.
        reward: Differentiable.
        accelerator, policy, model: As for `steer.tune.losses.Losses`.
        seed: Of the cuts.
    """

    def __init__(
        self,
        goal: RewardGradient,
        sampler: Sampler,
        reward: Reward,
        accelerator: Any,
        policy: Policy,
        model: Any,
        seed: int,
    ) -> None:
        self._goal, self._sampler, self._reward = goal, sampler, reward
        self._accelerator, self._policy, self._model = accelerator, policy, model
        self._seed = seed

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        return cast(Tensor, self._accelerator.reduce(values, reduction="mean"))

    def __call__(self, runs: Runs) -> Scored:
        """The loss of every run.

        Raises:
            TuneError: The reward's scores carry no gradient.
        """
        draws, text = self._goal.draws, self._sampler.text(runs.prompts)
        cut = self._cut(runs.step)
        with self._accelerator.autocast():
            clean = self._run(self._model, runs, text, cut)
        images = self._sampler.images(clean, grad=True)
        texts = [prompt for prompt in runs.prompts for _ in range(draws)]
        reward = self._reward(images, texts)
        if not reward.requires_grad:
            raise TuneError(
                f"reward={self._reward.name!r}: says that it is differentiable, and its scores "
                f"carry no gradient; {WAY_OUT}"
            )
        loss = reward_loss(reward, self._goal.ceiling)
        further: dict[str, Tensor] = {}
        if self._goal.leash:
            away = self._away(runs, text, cut.end, clean)
            loss, further["change"] = loss + self._goal.leash * away, away
        rows = [x.unflatten(0, (-1, draws)).mean(1) for x in (loss, reward, *further.values())]
        return Scored(rows[0], rows[1], dict(zip(further, rows[2:], strict=True)))

    def _cut(self, step: int) -> Cut:
        return self._goal.cut(len(self._sampler.grid), self._rng(step))

    def _rng(self, step: int) -> np.random.Generator:
        """Of an update's cut, or of its level."""
        return np.random.default_rng([self._seed, 83, step])

    def _run(self, model: Any, runs: Runs, text: Mapping[str, Tensor], cut: Cut) -> Tensor:
        """What is scored: the end of every run, or what further calls make of it noised again."""
        sampler, draws, steps = self._sampler, self._goal.draws, len(self._sampler.grid)
        denoise = sampler.denoiser(model, text, self._goal.recompute and len(cut.trained) > 1)

        def noise(position: int, x: Tensor) -> Tensor:
            return sampler.noise(runs.seeds, position)

        start = sampler.start(runs.seeds)
        clean = run(sampler.grid, start, denoise, cut, sampler.move, noise)
        if isinstance(self._goal, DirectAlign):
            level = sampler.grid[self._goal.level(steps, self._rng(runs.step))]
            return aligned(level, clean, denoise, noise(steps, clean), self._goal.jump)
        if draws == 1:
            return clean
        several = sampler.denoiser(model, sampler.repeat(text, draws))
        last = sampler.grid[-1]
        return renoised_last(last, clean, several, lambda k: noise(steps + k, clean), draws)

    def _away(self, runs: Runs, text: Mapping[str, Tensor], end: int, clean: Tensor) -> Tensor:
        """Mean squared difference from what the model before tuning makes of the same noise."""
        with self._policy.reference() as model, self._accelerator.autocast():
            before = self._run(model, runs, text, Cut(frozenset(), end))
        return (clean - before).square().flatten(1).mean(1)


WAY_OUT = "use ddpo or flow_grpo, or nft or awm in rounds, which need scores alone"
