"""Loading a tuned denoiser for a pipeline: strictly, and in the base's dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from steer.core.errors import CheckpointError, UnsupportedPipelineError, first_line
from steer.core.weights.reading import fingerprint, load_into, load_shards, read_json
from steer.driver.denoisers.checkpoints.known import named
from steer.driver.denoisers.checkpoints.lora import Lora, read_lora
from steer.driver.denoisers.checkpoints.origin import seems_made_for
from steer.driver.denoisers.checkpoints.peft_layers import plain_state
from steer.driver.denoisers.checkpoints.source import Found, find


_COMPONENTS = ("unet", "transformer")
_OTHERS = ("unet_2", "transformer_2", "prior", "decoder")


@dataclass(frozen=True, eq=False)
class Tuned:
    """A loaded tuned denoiser, which any number of `steer.guided` may share.

    Attributes:
        name: What it is called in reports.
        kind: `"denoiser"` and `"module"` have weights of their own; a `"lora"` is put around the
            layers of the pipeline's denoiser during guided calls.
        denoiser: The base that it was loaded for.
        module: The tuned denoiser; for a LoRA the base's own.
        lora: The LoRA's layers, which are not part of the denoiser.
        weight: The LoRA's strength.
        fingerprint: Twelve hexadecimal digits of the weights.
    """

    name: str
    kind: str
    denoiser: nn.Module
    module: nn.Module
    lora: Lora | None = None
    weight: float = 1.0
    fingerprint: str = ""

    def __repr__(self) -> str:
        return f"Tuned({self.name!r}, {self.kind}, {self.fingerprint})"


def load(pipe: Any, source: Any) -> Tuned:
    """A tuned denoiser for `pipe`; scheduler, VAE and text encoders stay the pipeline's.

    Args:
        pipe: The base: a diffusers pipeline with one `unet` or `transformer`.
        source: A name of `KNOWN`, a hub id, a folder or a file of safetensors, a `Checkpoint`, a
            denoiser (a torch module, used as it is), or what `load` returned before.

    Raises:
        CheckpointError: Nothing is found, it is a pickle, it does not fit the base (the first
            tensors are named), or it holds numbers that are not finite.
        UnsupportedPipelineError: The pipeline has no denoiser, or several.
        ValueError: An unknown name, or something that is not a checkpoint.
    """
    component, denoiser = denoiser_of(pipe)
    if isinstance(source, Tuned):
        return _fitting(source, denoiser)
    if isinstance(source, nn.Module):
        return _given(source, component, denoiser)
    label, checkpoint = named(source)
    found = find(checkpoint, component, label)
    if found.kind == "lora":
        lora = read_lora(pipe, component, denoiser, found, label)
        weight = float(checkpoint.weight)
        return Tuned(label, "lora", denoiser, denoiser, lora, weight, lora.fingerprint)
    module = _read(found, denoiser, label)
    return Tuned(label, "denoiser", denoiser, module, fingerprint=fingerprint(module))


def denoiser_of(pipe: Any) -> tuple[str, nn.Module]:
    """The pipeline's name for its one denoiser, and the denoiser.

    Raises:
        UnsupportedPipelineError: There is none, or more than one.
    """
    names = [name for name in _COMPONENTS if isinstance(getattr(pipe, name, None), nn.Module)]
    more = [name for name in _OTHERS if isinstance(getattr(pipe, name, None), nn.Module)]
    kind = type(pipe).__name__
    if not names:
        raise UnsupportedPipelineError(
            f"tuned: {kind} has neither a unet nor a transformer, so there is nothing that a tuned "
            "denoiser could stand beside; leave tuned and blend out"
        )
    if len(names) + len(more) > 1:
        raise UnsupportedPipelineError(
            f"tuned: {kind} has several denoisers ({', '.join([*names, *more])}), and one tuned "
            "denoiser cannot stand for all: assign tuned ones to the pipeline itself, and leave "
            "tuned and blend out"
        )
    return names[0], unwrapped(getattr(pipe, names[0]))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that torch.compile wrapped, or the module."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


def check_fits(theirs: Mapping[str, Any], denoiser: nn.Module, label: str) -> None:
    """Raise CheckpointError unless tensors have the names and shapes of the denoiser's own.

    Args:
        theirs: Names, and tensors or shapes.
        denoiser: The base.
        label: What to call the checkpoint.
    """
    own = {k: tuple(v.shape) for k, v in plain_state(denoiser).items() if v.is_floating_point()}
    shapes = {name: tuple(getattr(value, "shape", value)) for name, value in theirs.items()}
    _compare(shapes, own, f"the pipeline's {type(denoiser).__name__}", label)


def _compare(
    theirs: Mapping[str, tuple[int, ...]],
    own: Mapping[str, tuple[int, ...]],
    what: str,
    label: str,
) -> None:
    other = [
        f"{name} is {theirs[name]}, and {shape} in the base"
        for name, shape in own.items()
        if name in theirs and theirs[name] != shape
    ]
    problems = {
        "of another shape": other,
        "missing": [name for name in own if name not in theirs],
        "unexpected": [name for name in theirs if name not in own],
    }
    found = [f"{len(names)} {kind} ({_first(names)})" for kind, names in problems.items() if names]
    if not found:
        return
    origin, base = seems_made_for(theirs), seems_made_for(own)
    seems = f"; it seems made for {origin}, and the base is {base}" if origin != base else ""
    raise CheckpointError(
        f"tuned={label!r} does not fit {what}: {'; '.join(found)}{seems if origin else ''}. Give "
        "steer.guided the pipeline that it was tuned from"
    )


def _read(found: Found, denoiser: nn.Module, label: str) -> nn.Module:
    """A denoiser of the base's class with the checkpoint's weights, in the base's dtypes."""
    kind = type(denoiser)
    if not hasattr(kind, "from_config"):
        raise UnsupportedPipelineError(
            f"tuned={label!r}: {kind.__name__} is not built from a configuration, so weights alone "
            "cannot be loaded into it: pass the tuned denoiser itself (a torch module)"
        )
    config = _config(found.config, denoiser, label)
    state = load_shards(found.files)
    base = _built(denoiser, denoiser.config)
    _compare(_shapes(state), _shapes(base.state_dict()), f"the pipeline's {kind.__name__}", label)
    _check_finite(state, label)
    try:
        module = _built(denoiser, config)
    except Exception as error:  # whatever odd values make the denoiser's own code raise
        raise CheckpointError(
            f"tuned={label!r}: no {kind.__name__} can be built from {str(found.config)!r} "
            f"({type(error).__name__}: {first_line(error)}): download or copy it again"
        ) from error
    cast = _in_precision_of(state, denoiser)
    _check_finite(cast, label)
    load_into(module, cast, repr(label), assign=True)
    return module.eval().requires_grad_(False)


def _built(denoiser: nn.Module, config: Any) -> nn.Module:
    """A denoiser of the base's class without weights."""
    with init_empty_weights(include_buffers=False):
        return type(denoiser).from_config(config)  # pyright: ignore[reportAttributeAccessIssue]


def _config(path: Path | None, denoiser: nn.Module, label: str) -> Any:
    """The checkpoint's own configuration: heads and activations cannot be seen from shapes."""
    if has_image_adapter(denoiser):
        raise UnsupportedPipelineError(
            f"tuned={label!r}: the pipeline has an IP-Adapter, which a tuned denoiser would lack: "
            "call pipe.unload_ip_adapter() first, or pass a denoiser that has it too"
        )
    if path is None:
        return denoiser.config
    config = read_json(path)
    name = config.get("_class_name", type(denoiser).__name__)
    if name != type(denoiser).__name__:
        raise CheckpointError(
            f"tuned={label!r} is a {name}, and the pipeline's denoiser is a "
            f"{type(denoiser).__name__}: give steer.guided the pipeline that it was tuned from"
        )
    return config


def _in_precision_of(state: Mapping[str, Tensor], denoiser: nn.Module) -> dict[str, Tensor]:
    """Copies in the dtype that the base has for the same tensors, on the base's device.

    Copies, since tensors of a memory-mapped file are not aligned, and sums over them may be rounded
    differently.
    """
    kept = {name: value.dtype for name, value in plain_state(denoiser).items()}
    usual, device = precision_of(denoiser), device_of(denoiser)
    made = {}
    for name, value in state.items():
        dtype = kept.get(name, usual)
        floating = value.is_floating_point() and dtype.is_floating_point
        wanted = dtype if floating else usual if value.is_floating_point() else value.dtype
        made[name] = value.to(device, wanted, copy=True)
    return made


def precision_of(module: nn.Module) -> torch.dtype:
    """The dtype of its first floating-point tensor; float32 where it has none."""
    tensors = [*module.parameters(), *module.buffers()]
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def device_of(module: nn.Module) -> torch.device:
    """The device of its weights; the CPU if they are on the meta device (offloaded)."""
    first = next(iter([*module.parameters(), *module.buffers()]), None)
    if first is None or first.device.type == "meta":
        return torch.device("cpu")
    return first.device


def has_image_adapter(denoiser: nn.Module) -> bool:
    """Whether an IP-Adapter was loaded into it."""
    kind = getattr(getattr(denoiser, "config", None), "encoder_hid_dim_type", None)
    return kind == "ip_image_proj" or getattr(denoiser, "image_proj", None) is not None


def _check_finite(state: Mapping[str, Tensor], label: str) -> None:
    broken = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"tuned={label!r}: {len(broken)} tensors hold numbers that are not finite "
            f"({_first(broken)}): its training diverged, or the file is damaged; take another "
            "checkpoint or download it again"
        )


def _given(module: nn.Module, component: str, denoiser: nn.Module) -> Tuned:
    """A denoiser that the user passes, used as it is."""
    label, module = f"given {type(unwrapped(module)).__name__}", unwrapped(module)
    if module is denoiser:
        raise ValueError(
            f"tuned: this is the pipeline's own {component}; pass another denoiser, or leave tuned "
            "and blend out"
        )
    state = plain_state(module)
    theirs = {name: value for name, value in state.items() if value.is_floating_point()}
    check_fits(theirs, denoiser, label)
    if precision_of(module) != precision_of(denoiser):
        raise CheckpointError(
            f"tuned: the denoiser given is in {precision_of(module)}, and pipe.{component} in "
            f"{precision_of(denoiser)}: convert it with .to({precision_of(denoiser)})"
        )
    _check_finite(theirs, label)
    return Tuned(label, "module", denoiser, module, fingerprint=fingerprint(state))


def _fitting(tuned: Tuned, denoiser: nn.Module) -> Tuned:
    """A denoiser that was loaded before, checked: a LoRA belongs to the denoiser it is for."""
    if tuned.denoiser is denoiser:
        return tuned
    if tuned.lora is not None:
        raise ValueError(
            f"tuned={tuned!r}: this LoRA was loaded for another pipeline; load it again with "
            "steer.denoisers.checkpoints.load(pipe, source)"
        )
    check_fits(plain_state(tuned.module), denoiser, tuned.name)
    return tuned


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
