"""What a pipeline tells its denoiser about prompts: the keyword tensors of its first call.

A pipeline is called as for sampling and stopped at its first `scheduler.step`. What the denoiser
was given by then, besides latents and timestep, are the text features; a training loop that passes
them again needs no text encoder.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steer.core.errors import UnsupportedPipelineError
from steer.driver.facts import first_denoiser, quiet


Tensors = dict[str, Tensor]
_TIME = ("timestep", "timesteps", "t", "return_dict")
_APART = 100.0


class _StopError(Exception):
    """The first step is reached."""


def denoiser_of(pipe: Any) -> tuple[str, nn.Module]:
    """`("unet" or "transformer", module)`.

    Raises:
        UnsupportedPipelineError: The pipeline has neither.
    """
    found = first_denoiser(pipe)
    if found is None:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__}: has neither a unet nor a transformer to take text features "
            "from"
        )
    return found


@dataclass(frozen=True)
class Layout:
    """How a pipeline lays prompts out in its denoiser's arguments.

    Attributes:
        conditional: (call, half) that holds the prompts' features.
        unconditional: The same for the negative prompt's; None without classifier-free guidance.
        halves: Rows per prompt in one call: 2 where guidance shares a call.
        names: Arguments with one row per prompt.
        shared: Arguments without a prompt dimension, as they are passed.
    """

    conditional: tuple[int, int]
    unconditional: tuple[int, int] | None
    halves: int
    names: tuple[str, ...]
    shared: Tensors

    def split(self, calls: Sequence[Tensors], prompts: int) -> tuple[Tensors, Tensors | None]:
        """The prompts' features `(prompts, ...)` and the negative prompt's `(1, ...)`."""
        conditional = self._part(calls, self.conditional, prompts)
        if self.unconditional is None:
            return conditional, None
        found = self._part(calls, self.unconditional, prompts)
        return conditional, {name: value[:1] for name, value in found.items()}

    def _part(self, calls: Sequence[Tensors], where: tuple[int, int], prompts: int) -> Tensors:
        call, half = where
        rows = slice(half * prompts, (half + 1) * prompts)
        return {name: calls[call][name][rows].clone() for name in self.names}


class Features:
    """Text features of a pipeline, as its denoiser is given them.

    Two short calls at the start find out which arguments have a row per prompt, and which of
    classifier-free guidance's rows are the prompt's: those that differ between two prompts.

    Args:
        pipe: A diffusers pipeline.
        arguments: Of its calls, but for prompts and generators.
        probe: Two different prompts.

    Attributes:
        unconditional: The negative prompt's features, (1, ...); None without guidance.
        latent_shape: Of one row of the latents, as the denoiser is given them.

    Raises:
        UnsupportedPipelineError: Arguments that are no tensors with a row per prompt, or prompts
            that make no difference to them.
    """

    def __init__(self, pipe: Any, arguments: Mapping[str, Any], probe: tuple[str, str]) -> None:
        self.pipe, self.arguments = pipe, dict(arguments)
        self.latent_shape: tuple[int, ...] = ()
        first, second = probe
        two, three = self._calls([first, second]), self._calls([first, second, first])
        self.layout = _layout(type(pipe).__name__, two, three)
        _, self.unconditional = self.layout.split(two, 2)

    def __call__(self, prompts: Sequence[str]) -> Tensors:
        """Features of B prompts by (dotted) argument name, `(B, ...)` each, on the CPU."""
        return self.layout.split(self._calls(prompts), len(prompts))[0]

    def _calls(self, prompts: Sequence[str]) -> list[Tensors]:
        """The arguments of every denoiser call before the first step."""
        calls: list[Tensors] = []
        _, module = denoiser_of(self.pipe)
        signature = inspect.signature(module.forward)

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = signature.bind(*args, **kwargs).arguments
            latents = next(iter(signature.parameters))
            self.latent_shape = tuple(given[latents].shape[1:])
            kept = {k: v for k, v in given.items() if k not in (latents, *_TIME)}
            calls.append(dict(_tensors(kept, type(self.pipe).__name__)))

        with ExitStack() as stack:
            stack.enter_context(_stopping(self.pipe))
            handle = module.register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(handle.remove)
            generators = [torch.Generator().manual_seed(0) for _ in prompts]
            stack.enter_context(suppress(_StopError))
            self.pipe(list(prompts), generator=generators, **self.arguments)
        if hasattr(self.pipe, "maybe_free_model_hooks"):
            self.pipe.maybe_free_model_hooks()
        if not calls:
            raise UnsupportedPipelineError(
                f"{type(self.pipe).__name__}: its denoiser was not called before scheduler.step"
            )
        return calls


def _layout(pipe: str, two: list[Tensors], three: list[Tensors]) -> Layout:
    """From the arguments for two prompts and for three."""
    rows, shared = {}, {}
    for name, value in two[0].items():
        other = three[0].get(name)
        if other is None or other.shape[1:] != value.shape[1:]:
            raise UnsupportedPipelineError(
                f"{pipe}: {name!r} has another shape for other prompts, which cannot be cached; "
                "where the pipeline pads prompts to a length, set it (call: max_sequence_length)"
            )
        if value.ndim and len(other) * 2 == len(value) * 3:
            rows[name] = len(value) // 2
        else:
            shared[name] = value.clone()
    halves = set(rows.values())
    if not rows or len(halves) > 1 or (k := halves.pop()) * len(two) > 2:
        raise UnsupportedPipelineError(
            f"{pipe}: its denoiser is called with {len(two)} x {rows} rows per prompt, which is "
            "neither plain nor classifier-free guidance: switch other guidance off"
        )
    parts = [(call, half) for call in range(len(two)) for half in range(k)]
    apart = {part: _difference(two[part[0]], rows, part[1]) for part in parts}
    conditional = max(parts, key=lambda part: apart[part])
    others = [part for part in parts if part != conditional]
    if apart[conditional] == 0 or any(apart[p] * _APART > apart[conditional] for p in others):
        raise UnsupportedPipelineError(
            f"{pipe}: two different prompts make no difference that tells the prompt's features "
            "from the negative prompt's"
        )
    return Layout(conditional, others[0] if others else None, k, tuple(rows), shared)


def _difference(call: Tensors, rows: Mapping[str, int], half: int) -> float:
    """Largest relative difference between two prompts' rows."""
    found = 0.0
    for name in rows:
        a, b = call[name][2 * half : 2 * half + 2].double()
        scale = float(torch.maximum(a.abs().max(), b.abs().max())) or 1.0
        found = max(found, float((a - b).abs().max()) / scale)
    return found


def _tensors(given: Mapping[str, Any], pipe: str, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors among arguments, by dotted name, on the CPU; numbers and None are left out."""
    for name, value in given.items():
        if isinstance(value, Tensor):
            yield prefix + name, value.detach().cpu()
        elif isinstance(value, Mapping):
            yield from _tensors(value, pipe, f"{prefix}{name}.")
        elif _holds_tensors(value):
            raise UnsupportedPipelineError(
                f"{pipe}: its denoiser is given {prefix + name!r}, several tensors in a "
                f"{type(value).__name__} (a ControlNet, an IP adapter), which cannot be cached by "
                "prompt; use the plain pipeline"
            )


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_tensors(item) for item in value)
    return isinstance(value, Tensor)


@contextmanager
def _stopping(pipe: Any) -> Iterator[None]:
    """A pipeline whose scheduler stops it at the first step, with its progress bar off."""
    scheduler = pipe.scheduler

    @functools.wraps(scheduler.step)
    def stop(*args: Any, **kwargs: Any) -> None:
        raise _StopError

    object.__setattr__(scheduler, "step", stop)
    try:
        with quiet(pipe):
            yield
    finally:
        object.__delattr__(scheduler, "step")
