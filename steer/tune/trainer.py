"""The training loop: a dataset folder and a configuration in, tuned weights out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from steer.core.errors import NonFiniteError
from steer.tune import checkpointing
from steer.tune.checks import own_folder
from steer.tune.config import TuneConfig
from steer.tune.dataset import Dataset
from steer.tune.goals import CSFT, Outcome
from steer.tune.interrupts import Stopped, stop_requests
from steer.tune.loader import Batch, Loader
from steer.tune.losses import Guidance, Losses
from steer.tune.marked import marked_features
from steer.tune.noising import Noising
from steer.tune.policy import Policy
from steer.tune.runfiles import TUNED, RunFiles
from steer.tune.setup import (
    check_latents,
    check_shares,
    load_pipeline,
    make_order,
    timestep_scale,
    training_rows,
)
from steer.tune.validation import EVALUATION, draw_column, test_rows, write_grid


def tune(config: TuneConfig, pipe: Any = None, progress: bool = False) -> Path:
    """Train, continuing what is in `config.out`, and return the folder of the tuned weights.

    Args:
        config: What to do.
        pipe: The pipeline to tune, in place; loaded by `config.pipeline` when left out.
        progress: Show a bar on stderr.

    Returns:
        `out/tuned`: `pytorch_lora_weights.safetensors`, or `unet/` (`transformer/`); and
        `tune.json`, what it was made from.

    Raises:
        TuneError: The configuration, the dataset or a checkpoint cannot be used.
        NonFiniteError: The loss became NaN or infinite; the last good checkpoint is kept.
        Stopped: Interrupted (SIGINT, SIGTERM); a checkpoint was written.
    """
    trainer = Trainer(config, pipe, progress)
    try:
        return trainer.run()
    finally:
        trainer.loader.close()


class Trainer:
    """One run. `tune` is the way in; this class is for those who look at single steps.

    Attributes:
        step: Updates made.
        policy: The denoiser that is trained.
    """

    def __init__(self, config: TuneConfig, pipe: Any = None, progress: bool = False) -> None:
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        self.config, self.goal, self.out = config, config.objective, Path(config.out)
        RunFiles(self.out, True).check()
        self.progress, self.step = progress, 0
        self.data = Dataset.load(config.data)
        rows, self.labels = training_rows(self.goal, self.data, config.targets)
        order = make_order(config, rows, self.labels, self.data)
        self.accelerator = Accelerator(mixed_precision=_AUTOCAST[config.dtype], cpu=config.cpu)
        check_shares(config, self.accelerator.num_processes)
        self.pipe = pipe if pipe is not None else load_pipeline(config)
        self.noising = Noising.of(self.pipe, timestep_scale(config, self.data))
        set_seed(config.seed)  # the adapters' start; everything later has its own generators
        marked = {}
        if isinstance(self.goal, CSFT) and self.labels is not None:
            marked = marked_features(self.pipe, self.data, self.labels, self.goal.mark)
        self.policy = Policy(self.pipe, config.lora, self.goal.reference)
        check_latents(self.data, self.policy.module)
        self._prepare()
        share = (self.accelerator.process_index, self.accelerator.num_processes)
        draws = (config.seed, len(self.noising), config.text_dropout, config.siblings)
        if config.text_dropout:
            _ = self.data.uncond
        self.losses.guidance = Guidance.of(config, self.data, self.policy.module)
        self.loader = Loader(self.data, order, draws, share, self.goal.pairs, self.labels, marked)
        self.files = RunFiles(self.out, self.accelerator.is_main_process)
        self._data_hash = checkpointing.fingerprint(self.data)
        self._checkpoint: Path | None = None

    def _prepare(self) -> None:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        config, device = self.config, self.accelerator.device
        if config.gradient_checkpointing:
            self.policy.module.enable_gradient_checkpointing()
        self.policy.module.to(device)
        self.policy.to(device)
        self.parameters = list(self.policy.parameters().values())
        optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        kind = config.schedule
        if kind == "constant" and config.warmup:
            kind = "constant_with_warmup"
        self.schedule = get_scheduler(
            kind, optimizer, num_warmup_steps=config.warmup, num_training_steps=config.steps
        )
        self.model, self.optimizer = self.accelerator.prepare(self.policy.module, optimizer)
        self.noising = self.noising.to(device)
        self.losses = Losses(config, self.accelerator, self.policy, self.model, self.noising)
        self.ema = None
        if config.ema:
            self.ema = EMAModel(self.parameters, decay=config.ema, use_ema_warmup=True)

    def run(self) -> Path:
        """Train to the end and export; see `tune`."""
        with own_folder(self.out) if self.accelerator.is_main_process else nullcontext():
            return self._run()

    def _run(self) -> Path:
        self._resume()
        self.files.begin(self.config, self.labels, self.step)
        look = self.config.validation.every
        bar = tqdm(
            initial=self.step,
            total=self.config.steps,
            desc=self.goal.name,
            disable=not (self.progress and self.accelerator.is_main_process),
        )
        with stop_requests() as stop, bar:
            if look and self.step == 0:
                self._look()
            while self.step < self.config.steps:
                row = self.advance()
                bar.update()
                bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if k in _SHOWN})
                last = self.step == self.config.steps
                if look and (self.step % look == 0 or last):
                    self._look()
                if last or self.step % self.config.checkpoint_every == 0 or stop:
                    self.save()
                if stop and not last:
                    assert self._checkpoint is not None
                    raise Stopped(self.step, self._checkpoint)
        return self.export()

    def advance(self) -> dict[str, float]:
        """One update, logged: the loss, implicit accuracy, reward margin, gradient norm.

        Raises:
            NonFiniteError: The loss or the gradient is not finite; the weights are as before.
        """
        batch = self.loader.at(self.step)
        size = -(-len(batch) // self.config.accumulate)
        parts = [slice(i, i + size) for i in range(0, len(batch), size)]
        totals: list[Tensor] = []
        for part in parts:
            syncing = part is parts[-1]
            with nullcontext() if syncing else self.accelerator.no_sync(self.model):
                outcome = self.losses(batch.part(part))
                self.accelerator.backward(outcome.loss.sum() / len(batch))
            totals.append(_sums(outcome))
        row = self._means(totals, len(batch))
        if not np.isfinite(row["loss"]):
            self._fail(f"the loss is {row['loss']}", batch)
        row["grad_norm"] = self._update(batch)
        row["lr"] = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        self.step += 1
        self.files.log(self.step, row)
        return row

    def _update(self, batch: Batch) -> float:
        limit = self.config.clip or float("inf")
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
        value = 0.0 if norm is None else float(norm)
        if not np.isfinite(value) and self.accelerator.scaler is None:
            self._fail(f"the gradient's norm is {value}", batch)
        self.optimizer.step()  # with fp16, the gradient scaler leaves out steps that overflow
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def _means(self, totals: list[Tensor], rows: int) -> dict[str, float]:
        """Means over the batch and all processes; the one wait for the device in a step."""
        mean = self.losses.mean(torch.stack(totals).sum(0) / rows)
        return dict(zip(_SHOWN, mean.tolist(), strict=False))

    def _fail(self, what: str, batch: Batch) -> None:
        raise NonFiniteError(what, self.step + 1, batch.ids, self._checkpoint)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss, accuracy and margin on the split "test" at fixed noise; {} where it is empty."""
        rows = test_rows(self.data, self.goal.pairs, self.config.validation.rows)
        if not len(rows):
            return {}
        totals = [
            _sums(
                self.losses(self.loader.measurement(rows[start : start + self.config.batch], tag))
            )
            for tag, start in enumerate(range(0, len(rows), self.config.batch), EVALUATION)
        ]
        return {f"test_{k}": v for k, v in self._means(totals, len(rows)).items()}

    def _look(self) -> None:
        with self.average():
            row = self.evaluate()
            if row:
                self.files.log(self.step, row)
            if self.config.validation.prompts and self.accelerator.is_main_process:
                check = self.config.validation
                column = draw_column(self.pipe, check, self.accelerator.device)
                write_grid(self.out, self.step, column, check)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def average(self) -> Iterator[None]:
        """With the averaged weights in the denoiser, where there is an average."""
        if self.ema is None:
            return (yield)
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def save(self) -> Path | None:
        """Write a checkpoint of this step (on the main process)."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "weights": {k: v.detach().cpu() for k, v in self.policy.parameters().items()},
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
            }
            self._checkpoint = checkpointing.save(
                self.out, self.step, state, self.config, self._data_hash
            )
        return self._checkpoint

    def _resume(self) -> None:
        known = checkpointing.checkpoints(self.out)
        if not known:
            return
        self._checkpoint = known[-1]
        state = checkpointing.load(known[-1], self.config, self._data_hash)
        self.policy.load(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        self.step = state["step"]

    def export(self) -> Path:
        """Write the tuned weights (the average, where there is one) and what they come from."""
        folder = self.out / TUNED
        if self.accelerator.is_main_process:
            with self.average():
                written = self.policy.save(folder)
            self.files.origin(written, self.step, self.config, self.data, self.labels)
        self.accelerator.wait_for_everyone()
        return folder


_AUTOCAST = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
"""accelerate's names."""
_SHOWN = ("loss", "accuracy", "margin")


def _sums(outcome: Outcome) -> Tensor:
    """(3,) or (1,): sums of loss, accuracy and margin over the rows."""
    known = (outcome.loss, outcome.correct, outcome.margin)
    return torch.stack([x.detach().sum() for x in known if x is not None])
