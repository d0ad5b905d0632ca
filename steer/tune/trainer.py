"""The training loop: scored samples and a configuration in, tuned weights out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from steer.tune.goals import CSFT
from steer.tune.interrupts import Stopped, stop_requests
from steer.tune.labels import Labels
from steer.tune.loader import Loader, Rows
from steer.tune.losses import Guidance, Losses
from steer.tune.marked import marked_features
from steer.tune.policy import Policy
from steer.tune.runfiles import TUNED, RunFiles
from steer.tune.setup import (
    Material,
    check_latents,
    check_shares,
    forward_process,
    load_pipeline,
    make_optimizer,
)
from steer.tune.validation import EVALUATION, draw_column, test_rows, write_grid


class Trainer:
    """One run. `steer.tune.tune` is the way in; this class is for those who look at single steps.

    Args:
        config: What to do; without `data`, there is nothing to train on until `use` is called.
        pipe: The pipeline to tune, in place; loaded by `config.pipeline` when left out.
        progress: Show a bar on stderr.

    Attributes:
        step: Updates made.
        policy: The denoiser that is trained.
        data: What it is trained on; `manifest` is what the weights' origin says of it.
        old: Trained parameters of the policy that draws samples, where rounds keep one.
    """

    data: Dataset
    manifest: Mapping[str, Any]
    loader: Any

    def __init__(self, config: TuneConfig, pipe: Any = None, progress: bool = False) -> None:
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        self.config, self.goal, self.out = config, config.objective, Path(config.out)
        RunFiles(self.out, True).check()
        self.progress, self.step = progress, 0
        material = Material.of(config, Dataset.load(config.data)) if config.data else None
        self.accelerator = Accelerator(mixed_precision=_AUTOCAST[config.dtype], cpu=config.cpu)
        check_shares(config, self.accelerator.num_processes)
        self.pipe = pipe if pipe is not None else load_pipeline(config)
        self.noising = forward_process(config, self.pipe, material and material.data)
        set_seed(config.seed)  # the adapters' start; everything later has its own generators
        marked = {} if material is None else self._marked(material)
        self.policy = Policy(self.pipe, config.lora, self.goal.holds_reference)
        self._prepare()
        self.files = RunFiles(self.out, self.accelerator.is_main_process)
        self._checkpoint: Path | None = None
        self.labels: Labels | None = None
        self.old: Mapping[str, Tensor] | None = None
        if material is not None:
            self.use(material, marked)

    def _marked(self, material: Material) -> dict[int, dict[str, Tensor]]:
        if not isinstance(self.goal, CSFT) or material.labels is None:
            return {}
        return marked_features(self.pipe, material.data, material.labels, self.goal.mark)

    def use(
        self, material: Material, marked: Mapping[int, Mapping[str, Tensor]] | None = None
    ) -> None:
        """Train on this from now on; `marked` are the features of marked prompts, where known.

        Raises:
            TuneError: It is of another denoiser, or has no features of the empty prompt.
        """
        config, data = self.config, material.data
        check_latents(data, self.policy.module, self.noising)
        marked = self._marked(material) if marked is None else marked
        self.close()
        self.data, self.labels, self.manifest = data, material.labels, data.manifest
        share = (self.accelerator.process_index, self.accelerator.num_processes)
        draws = (config.seed, len(self.noising), config.text_dropout, config.siblings)
        if config.text_dropout:
            _ = data.uncond
        self.losses.guidance = self._guidance(data)
        self.loader = Loader(
            data, material.order, draws, share, self.goal.pairs, material.labels, marked
        )
        self._data_hash = checkpointing.fingerprint(data)

    def _guidance(self, data: Dataset) -> Guidance | None:
        return Guidance.of(self.config, data, self.policy.module)

    def close(self) -> None:
        """Stop reading."""
        if hasattr(self, "loader"):
            self.loader.close()

    def _prepare(self) -> None:
        from diffusers.training_utils import EMAModel

        config, device = self.config, self.accelerator.device
        if config.gradient_checkpointing:
            self.policy.module.enable_gradient_checkpointing()
        self.policy.module.to(device)
        self.policy.to(device)
        self.parameters = list(self.policy.parameters().values())
        optimizer, self.schedule = make_optimizer(config, self.parameters)
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
        self.resume()
        self.files.begin(self.config, self.labels, self.step)
        self.train(self.config.steps)
        return self.export()

    def train(self, until: int) -> None:
        """Train up to a step, and write a checkpoint there.

        Raises:
            NonFiniteError: The loss or the gradient is not finite.
            Stopped: Interrupted; a checkpoint was written.
        """
        look = self.config.validation.every
        bar = tqdm(
            initial=self.step,
            total=until,
            desc=self.goal.name,
            disable=not (self.progress and self.accelerator.is_main_process),
        )
        with stop_requests() as stop, bar:
            if look and self.step == 0:
                self._look()
            while self.step < until:
                row = self.advance()
                bar.update()
                bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if k in _SHOWN})
                last = self.step == self.config.steps
                if look and (self.step % look == 0 or last):
                    self._look()
                if stop or self.step == until or self.step % self.config.checkpoint_every == 0:
                    self.save()
                if stop and not last:
                    assert self._checkpoint is not None
                    raise Stopped(self.step, self._checkpoint)

    def advance(self) -> dict[str, float]:
        """One update, logged: the loss, implicit accuracy, reward margin, gradient norm.

        Raises:
            NonFiniteError: The loss or the gradient is not finite; the weights are as before.
        """
        batch = self.loader.at(self.step)
        parts = batch.parts(self.config.accumulate)
        outcomes: list[dict[str, Tensor]] = []
        for part in parts:
            syncing = part is parts[-1]
            with nullcontext() if syncing else self.accelerator.no_sync(self.model):
                outcome = self.losses(part)
                self.accelerator.backward(outcome.loss.sum() / len(batch))
            outcomes.append(outcome.named())
        row = self._means(outcomes, len(batch))
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

    def _update(self, batch: Rows) -> float:
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.clip or float("inf"))
        value = 0.0 if norm is None else float(norm)
        if not np.isfinite(value) and self.accelerator.scaler is None:
            self._fail(f"the gradient's norm is {value}", batch)
        self.optimizer.step()  # with fp16, the gradient scaler leaves out steps that overflow
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def _means(self, outcomes: list[dict[str, Tensor]], rows: int) -> dict[str, float]:
        """Means over the batch and all processes; the one wait for the device in a step."""
        totals = torch.stack([torch.stack([x.sum() for x in o.values()]) for o in outcomes])
        mean = self.losses.mean(totals.sum(0) / rows)
        return dict(zip(outcomes[0], mean.tolist(), strict=True))

    def _fail(self, what: str, batch: Rows) -> None:
        raise NonFiniteError(what, self.step + 1, batch.ids, self._checkpoint)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss, accuracy and margin on the split "test" at fixed noise; {} where it is empty."""
        rows = test_rows(self.data, self.goal.pairs, self.config.validation.rows)
        if not len(rows):
            return {}
        size = self.config.batch
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        outcomes = [
            self.losses(self.loader.measurement(part, tag)).named()
            for tag, part in enumerate(parts, EVALUATION)
        ]
        return {f"test_{k}": v for k, v in self._means(outcomes, len(rows)).items()}

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
                "weights": _on_cpu(self.policy.parameters()),
                "old": None if self.old is None else _on_cpu(self.old),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
            }
            self._checkpoint = checkpointing.save(
                self.out, self.step, state, self.config, self._data_hash
            )
        return self._checkpoint

    def resume(self) -> None:
        """Go on from the last checkpoint, where there is one.

        Raises:
            TuneError: It is damaged, or of another configuration or dataset.
        """
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
        if state.get("old") is not None:
            device = self.accelerator.device
            self.old = {name: value.to(device) for name, value in state["old"].items()}
        self.step = state["step"]

    def export(self) -> Path:
        """Write the tuned weights (the average, where there is one) and what they come from."""
        folder = self.out / TUNED
        if self.accelerator.is_main_process:
            with self.average():
                written = self.policy.save(folder)
            self.files.origin(written, self.step, self.config, self.manifest, self.labels)
        self.accelerator.wait_for_everyone()
        return folder


_AUTOCAST = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
"""accelerate's names."""
_SHOWN = ("loss", "accuracy", "margin", "reward")


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in weights.items()}
