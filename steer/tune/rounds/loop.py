"""The rounds of on-policy tuning: sample with the policy, score, train, and again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer.core.errors import TuneError
from steer.core.seeds import row_seed
from steer.core.types import Reward
from steer.core.warn import warn
from steer.rewards.families import warn_of_kin
from steer.rewards.parts import identity
from steer.tune.batches import Stream
from steer.tune.checkpointing import checkpoints
from steer.tune.checks import own_folder
from steer.tune.config import TuneConfig
from steer.tune.data.config import DataConfig, PairConfig
from steer.tune.data.index import columns
from steer.tune.data.make import make
from steer.tune.data.prompts import Prompt, read_prompts
from steer.tune.dataset import Dataset
from steer.tune.logs import save_state
from steer.tune.rounds.looks import Look, Record, best_of, has_fallen
from steer.tune.rounds.pool import pool
from steer.tune.rounds_config import RoundsConfig
from steer.tune.setup import Material
from steer.tune.trainer import Trainer


FOLDER, BEST = "rounds", "best.pt"


class Rounds:
    """One run in rounds; `steer.tune.tune` is the way in.

    Args:
        config: With `rounds`.
        pipe, progress: As for `Trainer`.
        rewards: The reward, and the judge where one is named; loaded by name when left out.

    Raises:
        TuneError: The configuration cannot be used, or another one was begun in `out`.
        ValueError: An unknown reward.
    """

    def __init__(
        self,
        config: TuneConfig,
        pipe: Any = None,
        progress: bool = False,
        rewards: Sequence[Reward] | None = None,
    ) -> None:
        assert config.rounds is not None
        self.config, self.rounds = config, config.rounds
        self.prompts = read_prompts(self.rounds.prompts)
        self._check_sizes()
        _warn_of_guidance(config, self.rounds)
        self.out, self.progress = Path(config.out).expanduser(), progress
        self.record = Record(self.out, self.rounds.model_dump())
        self.trainer = Trainer(config, pipe, progress)
        if self.trainer.accelerator.num_processes > 1:
            raise TuneError("rounds: run in one process; start without accelerate launch")
        device = self.trainer.accelerator.device
        self.rewards = _load(self.rounds, device) if rewards is None else list(rewards)
        _check_judge(self.rounds, self.rewards)
        self.trainer.pipe.to(device)

    def run(self) -> Path:
        """Rounds to the end, or to where the judge stops them; and export."""
        try:
            with own_folder(self.out):
                return self._run()
        finally:
            self.trainer.close()

    def _run(self) -> Path:
        trainer, updates = self.trainer, self.rounds.updates
        if known := checkpoints(self.out):
            made = int(known[-1].name.removeprefix("step-"))
            trainer.use(self._material((made - 1) // updates))
            trainer.resume()
        self.record.begin()
        trainer.files.begin(self.config, None, trainer.step)
        for number in range(trainer.step // updates, self.rounds.count):
            if trainer.step == number * updates:
                self._refresh(number)
            self._sample(number)
            if self._judge(number):
                return self._export_best()
            trainer.use(self._material(number))
            if number and trainer.old is not None and self._moves:
                trainer.policy.move_reference(trainer.old)
            trainer.train((number + 1) * updates)
        return trainer.export()

    @property
    def _moves(self) -> bool:
        """Whether the reference is what drew the samples, and not the base."""
        goal = self.config.objective
        return goal.reference and (goal.on_policy or self.rounds.reference == "round")

    def _refresh(self, number: int) -> None:
        """What draws this round's samples: the policy, or the average of policies."""
        decay, trainer = self.rounds.old_decay, self.trainer
        if not (decay or self._moves):
            return
        new = trainer.policy.weights()
        if number and decay and trainer.old is not None:
            before = trainer.old
            new = {name: before[name].lerp(value, 1 - decay) for name, value in new.items()}
        trainer.old = new

    def _sample(self, number: int) -> None:
        held = self.trainer.old
        with nullcontext() if held is None else self.trainer.policy.holding(held):
            make(
                self._data_config(number),
                pipe=self.trainer.pipe,
                rewards=self.rewards,
                progress=self.progress,
            )

    def _data_config(self, number: int) -> DataConfig:
        rounds, goal = self.rounds, self.config.objective
        return DataConfig(
            out=str(self._set(number)),
            prompts=[prompt._asdict() for prompt in self._prompts(number)],
            pipeline=self.config.pipeline,
            rewards=rounds.rewards,
            seeds=rounds.images,
            seed=row_seed(self.config.seed, 61, number),
            steps=rounds.steps,
            guidance_scale=rounds.guidance(self.config.guidance_scale),
            negative_prompt=rounds.negative_prompt,
            call=rounds.call,
            search=rounds.search,
            pairs=_by_reward(rounds.pairs) if goal.pairs else None,
            batch=rounds.batch,
            stored_dtype=rounds.stored_dtype,
            device=str(self.trainer.accelerator.device.type),
            test_share=0.0,
        )

    def _prompts(self, number: int) -> list[Prompt]:
        count = self.rounds.prompts_per_round
        if count is None or count >= len(self.prompts):
            return self.prompts
        stream = Stream(np.arange(len(self.prompts)), self.config.seed, 67)
        return [self.prompts[i] for i in np.unique(stream.take(number * count, count))]

    def _material(self, number: int) -> Material:
        kept = self.rounds.kept(number)
        folder = self._set(number)
        if len(kept) > 1:
            folder = pool({k: self._set(k) for k in kept}, self._place(number) / "pool")
        seed = row_seed(self.config.seed, 71, number)
        return Material.of(self.config, Dataset.load(folder), number * self.rounds.updates, seed)

    def _judge(self, number: int) -> bool:
        """Note what the samples came to, and keep the best weights; whether to stop."""
        judge = self.rounds.judge
        column = None if judge is None else columns(self.rounds.rewards)[judge]
        data, step = Dataset.load(self._set(number)), number * self.rounds.updates
        self.record.add(Look.of(number, step, data, column))
        best = best_of(self.record.looks)
        if best is not None and best.round == number and self.trainer.step == step:
            self._keep(number)
        return has_fallen(self.record.looks, self.rounds.patience)

    def _keep(self, number: int) -> None:
        """The weights that drew the samples of the best-judged round so far."""
        held = self.trainer.old
        found = self.trainer.policy.weights() if held is None else held
        weights = {name: value.cpu() for name, value in found.items()}
        path = self.out / FOLDER / BEST
        partial = path.with_name(f".{BEST}.tmp")
        save_state({"round": number, "weights": weights}, partial)
        os.replace(partial, path)

    def _export_best(self) -> Path:
        looks, trainer = self.record.looks, self.trainer
        best = best_of(looks)
        assert best is not None
        path = self.out / FOLDER / BEST
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        weights: dict[str, Tensor] = kept["weights"]
        trainer.policy.load(weights)
        trainer.ema, trainer.step = None, best.step
        warn(
            f"rounds: stopped after round {looks[-1].round + 1}: judge {self.rounds.judge!r} fell "
            f"from {best.judge:.4g} (round {best.round + 1}) to {looks[-1].judge:.4g} while the "
            f"reward went from {best.reward:.4g} to {looks[-1].reward:.4g}; the weights that drew "
            "the best-judged samples are exported"
        )
        trainer.use(self._material(best.round))
        return trainer.export()

    def _place(self, number: int) -> Path:
        return self.out / FOLDER / f"{number:04d}"

    def _set(self, number: int) -> Path:
        return self._place(number) / "data"

    def _check_sizes(self) -> None:
        prompts = min(len(self.prompts), self.rounds.prompts_per_round or len(self.prompts))
        rows = prompts * self.rounds.images
        if not self.config.objective.pairs and rows < self.config.batch:
            raise TuneError(
                f"batch={self.config.batch}: a round has only {prompts} prompts x "
                f"{self.rounds.images} images = {rows}; use a smaller batch, or more of them"
            )


def _by_reward(pairs: PairConfig | None) -> PairConfig:
    """Pairs by the reward alone: a judge that has a say in them is optimised."""
    return (pairs or PairConfig()).model_copy(update={"consensus": False})


def _load(rounds: RoundsConfig, device: torch.device) -> list[Reward]:
    from steer.rewards import reward

    return [reward(name, device=device) for name in rounds.rewards]


def _check_judge(rounds: RoundsConfig, rewards: Sequence[Reward]) -> None:
    """Refuse a judge that is the reward under another name; warn of kin."""
    if len(rewards) != len(rounds.rewards):
        raise TuneError(
            f"rewards: {len(rewards)} given, and the rounds name {', '.join(rounds.rewards)}"
        )
    if rounds.judge is None:
        return
    if rewards[0] is rewards[1] or identity(rewards[0]) == identity(rewards[1]):
        raise TuneError(
            f"rounds.judge={rounds.judge!r}: is the reward {rounds.reward!r} itself; name another "
            "reward, or leave judge out"
        )
    warn_of_kin(rewards[0], rewards[1])


def _warn_of_guidance(config: TuneConfig, rounds: RoundsConfig) -> None:
    sampled = rounds.guidance(config.guidance_scale)
    if sampled != (config.guidance_scale or 1.0):
        warn(
            f"rounds.guidance_scale={sampled:g} and guidance_scale={config.guidance_scale}: the "
            "loss is not of the predictions that draw the samples, and objectives that are not "
            "centred in every prompt learn the difference; give both the same"
        )
