"""A training loop for small models: seeded by step, exactly resumable, stopped by NaN."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from steer.core.errors import NonFiniteError, TuneError, first_line
from steer.tune.logs import append_line, save_state, trim_log


Loss = Callable[[np.random.Generator, torch.Generator], tuple[Tensor, dict[str, float]]]
Names = Callable[[np.random.Generator], Sequence[str]]
CHECKPOINT_EVERY, LOG_EVERY = 250, 25
ATTENTION = {
    "cpu": [SDPBackend.MATH],  # whose backward beats the fused kernel's at small sizes, measured
    "cuda": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}


@dataclass(frozen=True)
class Optimisation:
    """AdamW, linear warm-up, cosine to zero, an optional moving average of the weights.

    Attributes:
        steps, batch, lr, warmup, weight_decay: As usual.
        ema: Decay of the moving average; 0 is none.
        clip: Largest norm of the gradient.
        betas: AdamW's.
        decay_gains: Whether biases, norms' gains and scalars decay too.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.0
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    decay_gains: bool = True


def rank() -> int:
    """This process's number under torchrun, else 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes under torchrun, else 1."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(recipe: Optimisation) -> int:
    """This process's part of the batch."""
    return max(1, recipe.batch // world_size())


def generators(seed: int, stage: str, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Fresh randomness per step and process, so that a resumed run equals an uninterrupted one."""
    mixed = np.random.SeedSequence([seed, *stage.encode(), step, rank()])
    numpy_rng = np.random.default_rng(mixed)
    torch_rng = torch.Generator().manual_seed(int(numpy_rng.integers(2**62)))
    return numpy_rng, torch_rng


def learning_rate(step: int, recipe: Optimisation) -> float:
    """Linear warm-up, then half a cosine down to zero: open_clip's, which HPS v2 was trained with.

    (diffusers' `get_scheduler` begins at 0, so its first step would change nothing.)
    """
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


class Watch:
    """Losses and gradient norms since they were last looked at; looking waits for the device."""

    def __init__(self, name: str, seed: int, checkpoint: Path, names: Names | None) -> None:
        self.name, self.seed, self.checkpoint, self.names = name, seed, checkpoint, names
        self._seen: list[tuple[int, Tensor]] = []

    def note(self, step: int, loss: Tensor, norm: Tensor) -> None:
        self._seen.append((step, torch.stack([loss.detach().float(), norm.detach().float()])))
        if not loss.is_cuda:  # nothing to wait for
            self.look()

    def look(self) -> None:
        """NonFiniteError for the first of them that is not finite."""
        if not self._seen:
            return
        values = torch.stack([pair for _, pair in self._seen]).tolist()
        steps = [step for step, _ in self._seen]
        self._seen = []
        for step, (loss, norm) in zip(steps, values, strict=True):
            if math.isfinite(loss) and math.isfinite(norm):
                continue
            rng, _ = generators(self.seed, self.name, step)
            ids = [str(i) for i in self.names(rng)] if self.names else []
            what = f"loss={loss}, its gradient's norm is {norm}"
            kept = self.checkpoint if self.checkpoint.exists() else None
            raise NonFiniteError(what, step, ids, kept)


def train(
    name: str,
    module: nn.Module,
    loss: Loss,
    recipe: Optimisation,
    folder: Path,
    seed: int,
    *,
    names: Names | None = None,
    checkpoint_every: int = CHECKPOINT_EVERY,
    progress: bool = False,
) -> None:
    """Train `module` in place to the end of `recipe`, continuing from `folder` if it can.

    Under torchrun every process takes its `share` of the batch and the gradients are averaged; all
    processes must start from equal weights. Writes `<name>.pt` (everything needed to continue) and
    `<name>.jsonl` (step, loss, metrics). With an EMA, the averaged weights are in `module` on
    return.

    Args:
        name: Of the run; its randomness hangs on it.
        module: Parameters that require gradients are trained.
        loss: From a step's generators to its loss and what to log; a metric may be a tensor.
        recipe: Optimisation.
        folder: Of the two files.
        seed: Of the run.
        names: From a step's first generator to the names of what its batch holds, for the message
            of a NonFiniteError.
        checkpoint_every: Steps.
        progress: Show a bar on stderr.

    Raises:
        NonFiniteError: A loss or gradient that is NaN or infinite. The checkpoint is from before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / f"{name}.pt", folder / f"{name}.jsonl"
    optimizer = _adamw(module, recipe)
    ema = EMAModel(_parameters(module), decay=recipe.ema, foreach=True) if recipe.ema else None
    start = _resume(checkpoint, module, optimizer, ema)
    if rank() == 0:
        trim_log(log, start, first=0)
    module.train()
    watch = Watch(name, seed, checkpoint, names)
    hidden = rank() != 0 or not progress
    bar = tqdm(
        range(start, recipe.steps),
        initial=start,
        total=recipe.steps,
        desc=name,
        disable=hidden,
        mininterval=5,
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.zero_grad(set_to_none=True)
        with attention(module):
            value, metrics = loss(*generators(seed, name, step))
            value.backward()
        if world_size() > 1:
            _average_gradients(module)
        norm = nn.utils.clip_grad_norm_(_parameters(module), recipe.clip)
        watch.note(step, value, norm)
        optimizer.step()
        if ema:
            ema.step(_parameters(module))
        last = step == recipe.steps - 1
        if rank() == 0 and (step % LOG_EVERY == 0 or last):
            watch.look()
            row = {"step": step, "loss": round(value.item(), 6), **_round(metrics)}
            bar.set_postfix({k: v for k, v in row.items() if k != "step"})
            append_line(log, row)
        if rank() == 0 and ((step + 1) % checkpoint_every == 0 or last):
            watch.look()
            _save(checkpoint, module, optimizer, ema, step + 1)
    if ema:
        ema.copy_to(_parameters(module))
    module.eval()


def attention(module: nn.Module) -> AbstractContextManager[Any]:
    """The attention kernels that train fastest where the module is."""
    kernels = ATTENTION.get(next(module.parameters()).device.type)
    return sdpa_kernel(kernels) if kernels else nullcontext()


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _adamw(module: nn.Module, recipe: Optimisation) -> torch.optim.AdamW:
    parameters = _parameters(module)
    groups: list[dict[str, object]] = [{"params": parameters}]
    if not recipe.decay_gains:
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(
        groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
    )


def _average_gradients(module: nn.Module) -> None:
    """Mean gradient over the processes, in one message.

    (DDP, accelerate's too, wants the module's `forward`; towers are called one by one here.)
    """
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def _round(metrics: dict[str, float]) -> dict[str, float]:
    return {key: round(float(value), 4) for key, value in metrics.items()}


def _resume(
    checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel | None
) -> int:
    """The step to go on with, 0 without a checkpoint."""
    if not checkpoint.exists():
        return 0
    device = next(module.parameters()).device
    try:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        if ema:
            ema.load_state_dict(state["ema"])
            ema.to(device)
        return int(state["step"])
    except Exception as error:  # whatever the damage makes torch raise
        raise TuneError(
            f"{str(checkpoint)!r}: not a checkpoint of this run ({first_line(error)}); delete it "
            "to begin again"
        ) from error


def _save(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel | None, step: int
) -> None:
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "ema": ema.state_dict() if ema else None,
    }
    partial = path.with_suffix(".part")
    save_state(state, partial)
    os.replace(partial, path)
