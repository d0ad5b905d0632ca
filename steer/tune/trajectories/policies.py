"""Updates by policy gradients: runs are drawn and scored, then every noisy step is an action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from steer.core.errors import RewardError
from steer.core.seeds import row_seed
from steer.core.types import Reward, wide
from steer.tune.advantages import group_advantages
from steer.tune.batches import Stream
from steer.tune.loader import pieces
from steer.tune.policy import Policy
from steer.tune.policy_gradient import clipped_policy, log_ratio, mean_divergence
from steer.tune.sampled_goals import PolicyGradient
from steer.tune.trajectories.gradients import Scored
from steer.tune.trajectories.sampler import Sampler


@dataclass(frozen=True)
class Actions:
    """One noisy step of some runs.

    Attributes:
        position: In the grid.
        x: Latents before the step, (B, *latent), on the CPU.
        mean: Of the step under the policy that drew it, likewise.
    """

    position: int
    x: Tensor
    mean: Tensor

    def part(self, rows: slice) -> Actions:
        """Those of some of the runs."""
        return Actions(self.position, self.x[rows], self.mean[rows])


@dataclass(frozen=True)
class Drawn:
    """Runs as they were drawn, all of a prompt's together.

    Attributes:
        prompts, seeds: Of every run.
        text: The denoiser's further arguments.
        actions: The steps that drew noise.
        rewards, advantages: (B,).
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    text: Mapping[str, Tensor]
    actions: tuple[Actions, ...]
    rewards: Tensor
    advantages: Tensor

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"{p!r} from {s}" for p, s in zip(self.prompts, self.seeds, strict=True))


@dataclass(frozen=True)
class Chosen:
    """The runs of one update; its rows are their actions.

    Attributes:
        drawn: All runs.
        rows: Which of them.
        actions: One in parts of an update, else all.
    """

    drawn: Drawn
    rows: slice
    actions: tuple[Actions, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return self.drawn.ids[self.rows]

    def __len__(self) -> int:
        return (self.rows.stop - self.rows.start) * len(self.actions)

    def parts(self, count: int) -> list[Chosen]:
        start = self.rows.start
        return [
            replace(self, rows=slice(start + rows.start, start + rows.stop), actions=(action,))
            for action in self.actions
            for rows in pieces(self.rows.stop - start, count)
        ]


class Drawer:
    """Draws the runs of a round by the policy as it is, and scores them.

    Args:
        sampler: Of the pipeline.
        goal: The objective.
        reward: Any that scores an image alone.
        accelerator, model: Of the trainer.
        prompts: All of them come once before one comes again.
        images: Of each.
        count: Runs in a round.
        piece: Runs that are drawn together.
        seed: Of the training run.
    """

    def __init__(
        self,
        sampler: Sampler,
        goal: PolicyGradient,
        reward: Reward,
        accelerator: Any,
        model: Any,
        prompts: Sequence[str],
        images: int,
        count: int,
        piece: int,
        seed: int,
    ) -> None:
        self._sampler, self._goal, self._reward = sampler, goal, reward
        self._accelerator, self._model = accelerator, model
        self._prompts, self._images, self._count = prompts, images, count
        self._piece, self._seed = piece, seed
        self._stream = Stream(np.arange(len(prompts)), seed, 89)

    @torch.no_grad()
    def draw(self, number: int) -> Drawn:
        """Those of round `number`.

        Raises:
            RewardError: A score that is not finite.
        """
        groups = self._count // self._images
        chosen: list[int] = self._stream.take(number * groups, groups).repeat(self._images).tolist()
        prompts = tuple([self._prompts[i] for i in chosen])
        seeds = tuple(row_seed(self._seed, 97, number, k) for k in range(self._count))
        text, parts, rewards = self._sampler.text(prompts), [], []
        for start in range(0, self._count, self._piece):
            rows = slice(start, start + self._piece)
            actions, clean = self._walk(seeds[rows], self._sampler.part(text, rows))
            images = self._sampler.images(clean)
            rewards.append(self._reward(images, prompts[rows]).float().cpu())
            parts.append(actions)
        scores = torch.cat(rewards)
        self._check(scores, prompts, seeds)
        names = np.repeat(np.arange(groups), self._images)
        advantages = group_advantages(scores.numpy(), names, self._goal.spread, self._goal.clip)
        actions = tuple(_join(same) for same in zip(*parts, strict=True))
        return Drawn(prompts, seeds, text, actions, scores, torch.from_numpy(advantages).float())

    def _walk(
        self, seeds: Sequence[int], text: Mapping[str, Tensor]
    ) -> tuple[list[Actions], Tensor]:
        """A run's noisy steps, and its end."""
        sampler, found = self._sampler, []
        denoise, x = sampler.denoiser(self._model, text), sampler.start(seeds)
        for position, step in enumerate(sampler.grid):
            with self._accelerator.autocast():
                output = denoise(x, step)
            move = sampler.move(position, step, x, step.x0(x, output))
            if move.std:
                found.append(Actions(position, x.cpu(), move.mean.cpu()))
            x = move.sample(sampler.noise(seeds, position) if move.std else None)
        return found, x

    def _check(self, scores: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        for value, prompt, seed in zip(scores.tolist(), prompts, seeds, strict=True):
            if not np.isfinite(value):
                raise RewardError(
                    f"reward {self._reward.name!r} is {value} for {prompt!r} (seed {seed}): score "
                    "in float32, or leave this prompt out"
                )


def _join(parts: Sequence[Actions]) -> Actions:
    x, mean = torch.cat([p.x for p in parts]), torch.cat([p.mean for p in parts])
    return Actions(parts[0].position, x, mean)


class PolicyLosses:
    """From actions to their losses.

    Args:
        goal: The objective.
        sampler: Of the pipeline.
        accelerator, policy, model: As for `steer.tune.losses.Losses`.
    """

    def __init__(
        self, goal: PolicyGradient, sampler: Sampler, accelerator: Any, policy: Policy, model: Any
    ) -> None:
        self._goal, self._sampler = goal, sampler
        self._accelerator, self._policy, self._model = accelerator, policy, model

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        return cast(Tensor, self._accelerator.reduce(values, reduction="mean"))

    def __call__(self, chosen: Chosen) -> Scored:
        """The loss of one action of every run."""
        (whole,), drawn, rows = chosen.actions, chosen.drawn, chosen.rows
        action = whole.part(rows)
        text = self._sampler.part(drawn.text, rows)
        device = self._accelerator.device
        x, old = action.x.to(device), action.mean.to(device)
        noise = self._sampler.noise(drawn.seeds[rows], action.position)
        mean, std = self._step(self._model, x, text, action.position)
        ratio = log_ratio(mean, old, noise, std)
        advantage = drawn.advantages[rows].to(ratio)
        loss = clipped_policy(ratio, advantage, self._goal.ratio_clip)
        outside = (ratio.exp() - 1).abs() > self._goal.ratio_clip
        further = {"clipped": outside.float()}
        if self._goal.kl:
            with self._policy.reference() as model:
                before, _ = self._step(model, x, text, action.position)
            further["kl"] = mean_divergence(mean, before, std)
            loss = loss + self._goal.kl * further["kl"]
        return Scored(loss, drawn.rewards[rows].to(loss), further)

    def _step(
        self, model: Any, x: Tensor, text: Mapping[str, Tensor], position: int
    ) -> tuple[Tensor, float]:
        """Mean and standard deviation of a step under a model."""
        step = self._sampler.grid[position]
        with self._accelerator.autocast():
            output = self._sampler.denoiser(model, text)(x, step)
        move = self._sampler.move(position, step, x, step.x0(x, output))
        return wide(move.mean), move.std
