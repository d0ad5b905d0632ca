"""Copies of a pipeline's denoisers on further devices, for the time of one call."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steer.core.errors import SteerError, UnsupportedPipelineError, first_line
from steer.core.shortage import is_shortage
from steer.driver.facts import execution_device
from steer.driver.narrow import denoisers_of, is_compiled


_EXAMPLE = "devices=['cuda:0', 'cuda:1']"
_PLAIN = (Tensor, nn.Parameter)


def as_devices(value: Any) -> tuple[torch.device, ...]:
    """Devices by name or as torch has them; empty for None. Raises ValueError for anything else."""
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ValueError(f"devices={value!r}: must be a list, as in {_EXAMPLE}")
    return tuple(map(_device, value))


def _device(value: Any) -> torch.device:
    try:
        found = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"devices: {value!r} is no device ({first_line(error)}); write {_EXAMPLE}"
        ) from error
    if found.type != "cuda":
        return found
    count = torch.cuda.device_count()
    if (found.index or 0) >= count:
        raise ValueError(f"devices: there is no {found}, since torch sees {count} CUDA devices")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def check_replicas(pipe: Any, devices: Sequence[torch.device]) -> None:
    """Raise an error unless copies of the pipeline's denoisers can answer on these devices.

    Raises:
        ValueError: The first device is not the pipeline's own.
        UnsupportedPipelineError: A denoiser is compiled, quantised, or has hooks, which a copy
            would share with it; or there is none.
    """
    own, first = execution_device(pipe), devices[0]
    if own.type != first.type or (own.index or 0) != (first.index or 0):
        raise ValueError(
            f"devices: the first is {first}, and the pipeline is on {own}: name the pipeline's own "
            f"first, or move it there (pipe.to({str(first)!r}))"
        )
    denoisers = denoisers_of(pipe)
    if not denoisers:
        raise UnsupportedPipelineError(
            f"devices: {type(pipe).__name__} has no pipe.unet or pipe.transformer that could be "
            "copied to other devices; leave devices out"
        )
    for name, module in denoisers.items():
        why = _obstacle(module)
        if why is not None:
            raise UnsupportedPipelineError(
                f"devices: pipe.{name} cannot be copied to other devices, since it {why}; leave "
                "devices out"
            )


def _obstacle(module: nn.Module) -> str | None:
    """What a copy of the module would not have a copy of."""
    for part in module.modules():
        if is_compiled(part):
            return "is compiled (compile it not, or use one device)"
        if "forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks:
            return "has hooks (of offloading, a cache, or your own): take them off"
    odd = {type(t).__name__ for t in _weights(module) if type(t) not in _PLAIN}
    return f"has weights of a kind of their own ({', '.join(sorted(odd))})" if odd else None


def replica(module: nn.Module, device: torch.device, name: str) -> nn.Module:
    """A copy of a module on a device; on the module's own device it shares the weights.

    Weights are copied from device to device at once, so that the module's own needs no more memory.

    Raises:
        SteerError: The device has too little memory.
    """
    try:
        with torch.no_grad():
            made: dict[int, Any] = {id(t): _on(t, device) for t in _tensors(module)}
            return copy.deepcopy(module, made)
    except Exception as error:
        if not is_shortage(error):
            raise
        raise SteerError(
            f"devices: {device} has no room for a copy of pipe.{name} ({first_line(error)}): leave "
            "it out of devices, or free its memory"
        ) from error


def freeze_alike(module: nn.Module, twin: nn.Module) -> None:
    """Record gradients for a copy's weights where they are recorded for the module's.

    A search freezes weights and thaws them; and torch picks kernels by that, also under `no_grad`.
    """
    for own, other in zip(module.parameters(), twin.parameters(), strict=True):
        if own.requires_grad != other.requires_grad:
            other.requires_grad_(own.requires_grad)


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    there = tensor.detach().to(device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(there, tensor.requires_grad)
    return there


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that parts have as plain attributes (tables of angles)."""
    yield from _weights(module)
    for part in module.modules():
        own = (value for name, value in vars(part).items() if name not in _REGISTERED)
        for value in own:
            yield from _nested(value)


_REGISTERED = ("_parameters", "_buffers", "_modules")


def _nested(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _nested(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _nested(item)
