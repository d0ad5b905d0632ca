"""The training loop that every stage shares: seeded, resumable, with progress and a log."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from steer.shapes.train.recipe import StageRecipe


Loss = Callable[[np.random.Generator, torch.Generator], tuple[Tensor, dict[str, float]]]
CHECKPOINT_EVERY = 250
ATTENTION = {
    "cpu": [SDPBackend.MATH],  # whose backward beats the fused kernel's at these sizes, measured
    "cuda": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}


def rank() -> int:
    """This process's number under torchrun, else 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes under torchrun, else 1."""
    return dist.get_world_size() if dist.is_initialized() else 1


def generators(seed: int, stage: str, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Fresh randomness per step and process, so that a resumed run equals an uninterrupted one."""
    mixed = np.random.SeedSequence([seed, *stage.encode(), step, rank()])
    numpy_rng = np.random.default_rng(mixed)
    torch_rng = torch.Generator().manual_seed(int(numpy_rng.integers(2**62)))
    return numpy_rng, torch_rng


def learning_rate(step: int, recipe: StageRecipe) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


class Ema:
    """An exponential moving average of a module's parameters, warmed up."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in module.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for p, s in zip(module.parameters(), self.shadow, strict=True):
            p.copy_(s)


def _average_gradients(module: nn.Module) -> None:
    """Mean gradient over the processes, in one message."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def _save(path: Path, state: dict[str, object]) -> None:
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    os.replace(partial, path)


def share(recipe: StageRecipe) -> int:
    """This process's part of the batch."""
    return max(1, recipe.batch // world_size())


def train(
    name: str, module: nn.Module, loss: Loss, recipe: StageRecipe, folder: Path, seed: int
) -> None:
    """Train `module` in place to the end of `recipe`, continuing from `folder` if it can.

    Under torchrun every process takes its `share` of the batch and the gradients are averaged; all
    processes must start from equal weights. Writes `<name>.pt` (everything needed to continue) and
    `<name>.jsonl` (step, loss, metrics). With an EMA, the averaged weights are in `module` on
    return.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / f"{name}.pt", folder / f"{name}.jsonl"
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
    )
    ema = Ema(module, recipe.ema) if recipe.ema else None
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        if ema:
            ema.shadow = state["ema"]
    module.train()
    attention = ATTENTION[next(module.parameters()).device.type]
    bar = tqdm(
        range(start, recipe.steps),
        initial=start,
        total=recipe.steps,
        desc=name,
        disable=rank() != 0,
        mininterval=5,
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.zero_grad(set_to_none=True)
        with sdpa_kernel(attention):
            value, metrics = loss(*generators(seed, name, step))
            value.backward()
        if world_size() > 1:
            _average_gradients(module)
        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        optimizer.step()
        if ema:
            ema.update(module, step)
        last = step == recipe.steps - 1
        if rank() == 0 and (step % 25 == 0 or last):
            row = {"step": step, "loss": round(value.item(), 6), **metrics}
            bar.set_postfix({k: v for k, v in row.items() if k != "step"})
            with log.open("a") as f:
                f.write(json.dumps(row) + "\n")
        if rank() == 0 and ((step + 1) % CHECKPOINT_EVERY == 0 or last):
            _save(
                checkpoint,
                {
                    "module": module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "ema": ema.shadow if ema else [],
                },
            )
    if ema:
        ema.copy_to(module)
    module.eval()
