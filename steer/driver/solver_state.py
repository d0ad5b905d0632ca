"""The per-row state, generators and `step` arguments of a diffusers scheduler, for `Solver`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_parallel import DDIMParallelScheduler
from torch import Tensor

from steer.core.errors import UnsupportedSchedulerError


Generators = torch.Generator | list[torch.Generator] | None


def clone(scheduler: Any) -> Any:
    """A shallow copy of a scheduler with copied lists; tensors are shared, not written in place."""
    twin = copy.copy(scheduler)
    for name, value in vars(twin).items():
        if type(value) in (list, dict):
            setattr(twin, name, value.copy())
    return twin


def row_tensors(scheduler: Any, shape: tuple[int, ...]) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """The per-row tensors among a scheduler's attributes and lists, by (name, position)."""
    for name, value in vars(scheduler).items():
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, Tensor) and item.ndim == len(shape) and len(item) == shape[0]:
                yield (name, i), item


def map_rows(
    scheduler: Any, shape: tuple[int, ...], change: Callable[[tuple[str, int], Tensor], Tensor]
) -> Any:
    """A copy of the scheduler with `change((name, position), tensor)` for every per-row tensor."""
    twin = clone(scheduler)
    for (name, i), value in list(row_tensors(scheduler, shape)):
        held = getattr(twin, name)
        if isinstance(held, list):
            held[i] = change((name, i), value)
        else:
            setattr(twin, name, change((name, i), value))
    return twin


def take(value: Tensor, index: Tensor, padded: bool = False) -> Tensor:
    """Rows by index; when padded, one past the end is a row of zeros."""
    if padded:
        value = torch.cat([value, value.new_zeros(1, *value.shape[1:])])
    return value.index_select(0, index)


def fork(generator: Generators, device: torch.device) -> Generators:
    """A copy of the generator in the same state; for None, of the device's global generator."""
    if isinstance(generator, list):
        return [g.clone_state() for g in generator]
    if generator is None and device.type == "cuda":
        current = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[current]
    return (generator or torch.default_generator).clone_state()


def step_arguments(
    scheduler: str, given: Mapping[str, Any], accepted: set[str], rows: int
) -> dict[str, Any]:
    """What the pipeline passes to `scheduler.step`, for so many rows.

    Args:
        scheduler: Its name, for errors.
        given: What was passed with the latest denoiser call.
        accepted: What `step` takes.
        rows: Rows to step; the pipeline's own batch may have another number.

    Raises:
        UnsupportedSchedulerError: An argument that differs from row to row.
    """
    kwargs = {name: value for name, value in given.items() if name in accepted}
    for name, value in kwargs.items():
        if not isinstance(value, Tensor) or value.ndim < 2 or len(value) == rows:
            continue
        if not torch.equal(value[1:], value[:-1]):
            raise UnsupportedSchedulerError(
                f"{scheduler}.step gets {name} of {len(value)} different rows, which other "
                "particles have none of; use a method of one particle, such as BestOfN(1)"
            )
        kwargs[name] = value[:1].expand(rows, *value.shape[1:])
    return kwargs


def step_parameters(scheduler: Any) -> set[str]:
    """The parameter names of `scheduler.step`.

    Raises:
        UnsupportedSchedulerError: It needs more than model output, timestep and sample, or draws
            noise without the generator that it is given.
    """
    parameters = inspect.signature(scheduler.step).parameters.values()
    names = {p.name for p in parameters}
    needed = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    unknown = needed - {"model_output", "timestep", "sample"}
    if unknown or getattr(scheduler, "solver_p", None) is not None:
        more = ", ".join(sorted(unknown)) or "a second solver (solver_p)"
        raise UnsupportedSchedulerError(
            f"{type(scheduler).__name__}.step needs {more}, which steer cannot carry per row; use "
            "DDIMScheduler or DPMSolverMultistepScheduler where the model allows it."
        )
    if ignores_generator(scheduler):
        raise UnsupportedSchedulerError(
            f"{type(scheduler).__name__} with stochastic_sampling=True draws its noise without the "
            "generator in this version of diffusers, so no particle could be drawn again: install "
            "diffusers 0.39 or newer, or use stochastic_sampling=False"
        )
    return names


def ignores_generator(scheduler: Any) -> bool:
    """Whether `step` draws noise, but not from its `generator` (flow before diffusers 0.39)."""
    if not getattr(scheduler.config, "stochastic_sampling", False):
        return False
    return "randn_like" in inspect.getsource(type(scheduler).step)


def renoises(scheduler: Any) -> bool:
    """Whether `step` draws all noise anew, at every step: LCM, `stochastic_sampling=True`."""
    drawn = getattr(scheduler.config, "stochastic_sampling", False)
    return bool(drawn) or "LCM" in type(scheduler).__name__


def blocks_of(
    slots: Sequence[int | None], plain_rows: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Row indices of the plain batch (one past the end: missing), of the rest, and back.

    Args:
        slots: Of every row its row in the plain call; `None` for a row beyond it.
        plain_rows: Of the plain call.
        device: Where the indices are wanted.
    """
    where = {slot: row for row, slot in enumerate(slots)}
    plain = [where.get(slot, len(slots)) for slot in range(plain_rows)]
    extra = [row for row, slot in enumerate(slots) if slot is None]
    place = {row: plain_rows + i for i, row in enumerate(extra)}
    order = [place[row] if slot is None else slot for row, slot in enumerate(slots)]
    first, second, back = (torch.tensor(i, dtype=torch.long) for i in (plain, extra, order))
    return first.to(device), second.to(device), back.to(device)


def negative_variance(scheduler: Any, eta: float) -> frozenset[int]:
    """Steps at which DDIM takes the root of a rounding error below zero and returns NaN.

    With eta near 1 and alpha near 0 (zero terminal SNR), `1 - alpha' - std^2` is zero but for
    rounding (diffusers DDIMScheduler.step).
    """
    if eta == 0 or not isinstance(scheduler, DDIMScheduler | DDIMParallelScheduler):
        return frozenset()
    stride = scheduler.config["num_train_timesteps"] // scheduler.num_inference_steps
    bad = set()
    for i, t in enumerate(scheduler.timesteps.tolist()):
        before = t - stride
        alpha = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
        std = eta * scheduler._get_variance(t, before) ** 0.5
        if not bool(1 - alpha - std**2 >= 0):
            bad.add(i)
    return frozenset(bad)


def with_variance(scheduler: Any, output: Tensor, x: Tensor) -> Tensor:
    """An output for a scheduler that reads a learned variance behind the prediction.

    A prediction alone, of what only asks how the scheduler steps, gets the middle of its range.
    """
    learned = getattr(scheduler.config, "variance_type", None) in ("learned", "learned_range")
    if not learned or output.shape[1] != x.shape[1]:
        return output
    return torch.cat([output, torch.zeros_like(output)], 1)
