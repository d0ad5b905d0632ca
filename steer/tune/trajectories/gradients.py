"""Updates by the reward's own gradient: every row is a run of its own, or an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor

from steer.core.errors import TuneError
from steer.core.seeds import row_seed
from steer.core.types import Reward
from steer.tune.backprop import Cut, aligned, noised_image, renoised_last, reward_loss, run
from steer.tune.batches import Stream
from steer.tune.dataset import Dataset
from steer.tune.loader import Batch, Loader, pieces, to_device
from steer.tune.losses import Losses
from steer.tune.policy import Policy
from steer.tune.sampled_goals import DirectAlign, RewardGradient
from steer.tune.trajectories.sampler import Sampler


@dataclass(frozen=True)
class Runs:
    """Runs of one update: prompts, and the seeds of all their randomness.

    Attributes:
        ids: Of the update's rows.
        prompts: Of every row.
        seeds: Likewise; none where rows are images.
        step: Of the update.
        images: Of the dataset, one for every row, where the objective uses it.
    """

    ids: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    step: int
    images: Batch | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def parts(self, count: int) -> list[Runs]:
        return [self.part(rows) for rows in pieces(len(self), count)]

    def part(self, rows: slice) -> Runs:
        """Some of the rows."""
        images = None if self.images is None else self.images.part(rows)
        return Runs(self.ids, self.prompts[rows], self.seeds[rows], self.step, images)


class RunLoader:
    """Prompts in turns, each with a fresh seed: functions of (seed, step) alone.

    Args:
        prompts: All of them come once before one comes again.
        seed: Of the run.
        rows: Per update.
        images: Of as many images of a dataset per update, where the objective uses it.
    """

    def __init__(
        self, prompts: Sequence[str], seed: int, rows: int, images: Loader | None = None
    ) -> None:
        self._prompts, self._seed, self._rows = prompts, seed, rows
        self._images = images
        self._stream = Stream(np.arange(len(prompts)), seed, 73)

    def at(self, step: int) -> Runs:
        """Those of an update."""
        chosen: list[int] = self._stream.take(step * self._rows, self._rows).tolist()
        prompts = tuple([self._prompts[i] for i in chosen])
        seeds = tuple(row_seed(self._seed, 79, step, k) for k in range(self._rows))
        ids = tuple(f"{p!r} from {s}" for p, s in zip(prompts, seeds, strict=True))
        if self._images is None:
            return Runs(ids, prompts, seeds, step)
        images = self._images.at(step)
        return Runs((*ids, *images.ids), prompts, seeds, step, images)

    def close(self) -> None:
        """Stop reading."""
        if self._images is not None:
            self._images.close()


class ImageLoader:
    """Images of a dataset in turns, each with its own caption: functions of (seed, step) alone.

    Args:
        images: Of the dataset, with fresh noise.
        data: The dataset.
    """

    def __init__(self, images: Loader, data: Dataset) -> None:
        self._images = images
        self._prompts = dict(zip(data.ids, data.prompts, strict=True))

    def at(self, step: int) -> Runs:
        """Those of an update."""
        images = self._images.at(step)
        return Runs(images.ids, tuple(self._prompts[i] for i in images.ids), (), step, images)

    def close(self) -> None:
        """Stop reading."""
        self._images.close()


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
        real: Denoising errors of the dataset's images, guided as runs are; for `goal.real`.
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
        real: Losses,
    ) -> None:
        self._goal, self._sampler, self._reward = goal, sampler, reward
        self._accelerator, self._policy, self._model = accelerator, policy, model
        self._seed, self._real = seed, real

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        return cast(Tensor, self._accelerator.reduce(values, reduction="mean"))

    def __call__(self, runs: Runs) -> Scored:
        """The loss of every run.

        Raises:
            TuneError: The reward's scores carry no gradient.
        """
        draws, cut, text = self._goal.draws, self._cut(runs.step), self._text(runs)
        with self._accelerator.autocast():
            clean, error = self._run(self._model, runs, text, cut)
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
        further = dict(zip(further, rows[2:], strict=True))
        if self._goal.real:
            further["real"] = self._error(runs) if error is None else error
            rows[0] = rows[0] + self._goal.real * further["real"]
        return Scored(rows[0], rows[1], further)

    def _text(self, runs: Runs) -> dict[str, Tensor]:
        """The denoiser's further arguments for the rows."""
        return self._sampler.text(runs.prompts)

    def _error(self, runs: Runs) -> Tensor:
        """The denoising error of the update's images, `(B,)`."""
        assert runs.images is not None
        return self._real.errors(runs.images).policy

    def _cut(self, step: int) -> Cut:
        return self._goal.cut(len(self._sampler.grid), self._rng(step))

    def _rng(self, step: int) -> np.random.Generator:
        """Of an update's cut, or of its level."""
        return np.random.default_rng([self._seed, 83, step])

    def _run(
        self, model: Any, runs: Runs, text: Mapping[str, Tensor], cut: Cut
    ) -> tuple[Tensor, Tensor | None]:
        """What is scored: the end of every run, or what further calls make of it noised again; and
        the denoising error of rows that are images."""
        sampler, draws, steps = self._sampler, self._goal.draws, len(self._sampler.grid)
        denoise = sampler.denoiser(model, text, self._goal.recompute and len(cut.trained) > 1)

        def noise(position: int, x: Tensor) -> Tensor:
            return sampler.noise(runs.seeds, position)

        start = sampler.start(runs.seeds)
        clean = run(sampler.grid, start, denoise, cut, sampler.move, noise)
        if isinstance(self._goal, DirectAlign):
            level = sampler.grid[self._goal.level(steps, self._rng(runs.step))]
            return aligned(level, clean, denoise, noise(steps, clean), self._goal.jump), None
        if draws == 1:
            return clean, None
        several = sampler.denoiser(model, sampler.repeat(text, draws))
        last = sampler.grid[-1]
        found = renoised_last(last, clean, several, lambda k: noise(steps + k, clean), draws)
        return found, None

    def _away(self, runs: Runs, text: Mapping[str, Tensor], end: int, clean: Tensor) -> Tensor:
        """Mean squared difference from what the model before tuning makes of the same noise."""
        with self._policy.reference() as model, self._accelerator.autocast():
            before, _ = self._run(model, runs, text, Cut(frozenset(), end))
        return (clean - before).square().flatten(1).mean(1)


class ImageLosses(RewardLosses):
    """Likewise, from images of a dataset to theirs: `ImageReFL`."""

    def _text(self, runs: Runs) -> dict[str, Tensor]:
        return self._placed(runs)[1]

    def _run(
        self, model: Any, runs: Runs, text: Mapping[str, Tensor], cut: Cut
    ) -> tuple[Tensor, Tensor | None]:
        clean, _, noise, _ = self._placed(runs)
        step = self._sampler.grid[cut.end - 1]
        return noised_image(step, clean, self._sampler.denoiser(model, text), noise)

    def _placed(self, runs: Runs) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        assert runs.images is not None
        return to_device(runs.images, self._accelerator.device, self._sampler.dtype)


WAY_OUT = "use ddpo or flow_grpo, or nft or awm in rounds, which need scores alone"
