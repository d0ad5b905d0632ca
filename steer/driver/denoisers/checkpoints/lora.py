"""LoRA files as layers of their own, outside of the denoiser that they are for.

diffusers' own loader reads the file into a model without weights, built like the denoiser; the
layers that peft made there are kept. The denoiser itself is not touched.
"""

from __future__ import annotations

import copy
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import Tensor, nn

from steer.core.errors import CheckpointError, UnsupportedPipelineError, first_line
from steer.driver.denoisers.checkpoints.lora_file import prepared
from steer.driver.denoisers.checkpoints.origin import seems_made_for
from steer.driver.denoisers.checkpoints.peft_layers import base_of, dtype_of, tuner_layers
from steer.driver.denoisers.checkpoints.source import Found


ADAPTER = "steer"
"""The name of a LoRA in its layers; each holds that one only."""
_MARKS = (".lora_", ".lokr_")
_LARGEST = 1e6


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA, ready to be put around a denoiser's layers.

    Attributes:
        layers: peft's layers, by the names of the layers in the denoiser that they are for.
        fingerprint: Twelve hexadecimal digits of the file.
    """

    layers: Mapping[str, nn.Module]
    fingerprint: str


def read_lora(pipe: Any, component: str, denoiser: nn.Module, found: Found, label: str) -> Lora:
    """Read a LoRA for the pipeline's denoiser, which is left as it is.

    Raises:
        CheckpointError: It adapts no layer of the denoiser, or layers that the denoiser does not
            have or has in another shape; a matrix is missing, or a tensor is of no use; the first
            is named.
        UnsupportedPipelineError: The pipeline takes no LoRA.
    """
    if not hasattr(pipe, "load_lora_weights") or not hasattr(type(denoiser), "from_config"):
        raise UnsupportedPipelineError(
            f"tuned={label!r} is a LoRA, and {type(pipe).__name__} with a "
            f"{type(denoiser).__name__} has no load_lora_weights: fuse it into a copy of the "
            "denoiser, and pass that"
        )
    with tempfile.TemporaryDirectory() as folder:
        file, digits = prepared(found, component, label, Path(folder))
        names = _converted(pipe, file, component, label)
        _check_shapes(names, denoiser, label)
        _check_pairs(names, label)
        layers = _loaded(pipe, component, denoiser, file, label)
    _check_complete(layers, names, label)
    _check_strengths(layers, label)
    for layer in layers.values():
        layer._modules.pop("base_layer")
        layer.requires_grad_(False).eval()
    return Lora(layers, digits)


def _loaded(
    pipe: Any, component: str, denoiser: nn.Module, file: Path, label: str
) -> dict[str, nn.Module]:
    """The layers that diffusers' loader makes of the file, in a model that is then thrown away."""
    model = _hollow(denoiser)
    stand_in = copy.copy(pipe)
    for name, part in vars(pipe).items():
        if isinstance(part, nn.Module):
            object.__setattr__(stand_in, name, None)
    object.__setattr__(stand_in, component, model)
    try:
        with _quiet():
            stand_in.load_lora_weights(
                str(file.parent),
                weight_name=file.name,
                adapter_name=ADAPTER,
                low_cpu_mem_usage=True,
            )
    except Exception as error:  # diffusers and peft raise many kinds
        raise CheckpointError(
            f"tuned={label!r}: diffusers cannot load this LoRA into {type(pipe).__name__} "
            f"({type(error).__name__}: {first_line(error)}): give the pipeline that it was made for"
        ) from error
    layers = tuner_layers(model)
    return {name: part for name, part in model.named_modules() if name in layers}


def _hollow(denoiser: Any) -> nn.Module:
    """A model built like the denoiser; each weight is one number, expanded to the weight's shape.

    (peft moves a LoRA to the device and dtype of the weight beside it, so these cannot be on the
    meta device.)
    """
    with init_empty_weights(include_buffers=False):
        model = type(denoiser).from_config(denoiser.config)
    for name, module in model.named_modules():
        try:
            own = base_of(denoiser.get_submodule(name))
        except AttributeError:
            own = None
        for key, value in module._parameters.items():
            if value is not None:
                dtype = dtype_of(getattr(own, key, None), denoiser)
                one = torch.zeros((), dtype=dtype).expand(value.shape)
                module._parameters[key] = nn.Parameter(one, requires_grad=False)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress diffusers' warnings that a LoRA has nothing for the text encoders."""

    def telling(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No LoRA keys associated to")

    loggers = [logging.getLogger(f"diffusers.loaders.{name}") for name in ("lora_base", "peft")]
    for logger in loggers:
        logger.addFilter(telling)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(telling)


def _converted(pipe: Any, file: Path, component: str, label: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the LoRA's tensors in the denoiser's own names, peft's form."""
    try:
        found = pipe.lora_state_dict(
            str(file.parent), weight_name=file.name, unet_config=getattr(pipe, component).config
        )
    except Exception as error:  # diffusers raises many kinds
        raise CheckpointError(
            f"tuned={label!r}: not a LoRA that diffusers reads "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    state = found[0] if isinstance(found, tuple) else found
    own = {
        name.removeprefix(f"{component}."): value
        for name, value in state.items()
        if name.startswith(f"{component}.")
    }
    old = [name for name in own if ".lora.down." in name or ".lora.up." in name]
    if old and any(".lora_A." in name for name in own):
        raise CheckpointError(
            f"tuned={label!r}: names of two kinds, of which diffusers would leave out {len(old)} "
            f"({old[0]}): rename .lora.down. to .lora_A. and .lora.up. to .lora_B. in the file"
        )
    if own and "lora_A" not in next(iter(own)) and not any(".lokr_" in name for name in own):
        own = convert_unet_state_dict_to_peft(own)
    if not own:
        raise CheckpointError(
            f"tuned={label!r}: it adapts no layer of the pipeline's {component}; it seems made for "
            f"{seems_made_for(_shapes(state)) or 'another kind of model'}"
        )
    others = [name for name in state if not name.startswith(f"{component}.")]
    if others:
        raise CheckpointError(
            f"tuned={label!r}: {len(others)} of its tensors are for other parts than the "
            f"pipeline's {component} ({others[0]}): remove them from the file"
        )
    return _shapes(own)


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], denoiser: nn.Module, label: str) -> None:
    """Raise CheckpointError unless every tensor is for a layer, and fits it."""
    strays = [name for name in shapes if not any(mark in name for mark in _MARKS)]
    _check_none(strays, "are not used by diffusers", label)
    layers = dict(denoiser.named_modules())
    for name, shape in shapes.items():
        place = _place(name)
        weight = getattr(base_of(layers.get(place)), "weight", None)
        side = 1 if name.endswith(".lora_A.weight") else 0
        matrix = name.endswith((".lora_A.weight", ".lora_B.weight"))
        if isinstance(weight, Tensor) and (
            not matrix or not weight.is_floating_point() or weight.shape[side] == shape[side]
        ):
            continue
        has = "no such layer" if weight is None else f"{tuple(weight.shape)} there"
        origin = seems_made_for(shapes)
        seems = f"; it seems made for {origin}" if origin else ""
        raise CheckpointError(
            f"tuned={label!r} is a LoRA for another base: {name} is {shape}, and "
            f"{type(denoiser).__name__} has {has}{seems}. Give steer.guided the pipeline that it "
            "was made for"
        )


def _check_pairs(names: Mapping[str, Any], label: str) -> None:
    """Raise CheckpointError unless every layer has both of its matrices."""
    pair = (".lora_A.weight", ".lora_B.weight")
    places = {_place(name) for name in names if name.endswith(pair)}
    lost = sorted(place + end for place in places for end in pair if place + end not in names)
    if lost:
        raise CheckpointError(
            f"tuned={label!r}: {len(lost)} matrices are missing ({lost[0]}), and a LoRA is made of "
            "pairs: the file is damaged; download or save it again"
        )


def _check_complete(layers: Mapping[str, nn.Module], names: Mapping[str, Any], label: str) -> None:
    """Raise CheckpointError unless the file filled every tensor, and every tensor was used."""
    taken = {
        f"{place}.{name}".replace(f".{ADAPTER}", ""): value
        for place, layer in layers.items()
        for name, value in layer.named_parameters()
        if not name.startswith("base_layer.")
    }
    empty = [name for name, value in taken.items() if value.is_meta]
    known = {name.removesuffix(".weight") for name in taken}
    unused = [name for name in names if name.removesuffix(".weight") not in known]
    _check_none(empty, "are missing", label)
    _check_none(unused, "are not used by diffusers", label)


def _check_none(names: Sequence[str], what: str, label: str) -> None:
    if names:
        raise CheckpointError(
            f"tuned={label!r}: {len(names)} tensors {what} ({names[0]}), so the LoRA would not be "
            "the one that was trained: save it again as diffusers or peft write it"
        )


def _check_strengths(layers: Mapping[str, nn.Module], label: str) -> None:
    """Raise CheckpointError for alpha 0, and for changes too large to be meant."""
    for place, layer in layers.items():
        scaling: float = getattr(layer, "scaling", {}).get(ADAPTER, 1.0)
        if scaling == 0:
            raise CheckpointError(
                f"tuned={label!r}: alpha is 0 at {place}, so it would change nothing: set "
                "lora_alpha to the rank in the file, for strength 1"
            )
        size = abs(scaling) * _norm(layer)
        if not size < _LARGEST:
            dtype = next(layer.parameters()).dtype
            much = f"{size:.2g} (Frobenius norm)" if size < math.inf else f"more than {dtype} holds"
            raise CheckpointError(
                f"tuned={label!r}: it changes the weights of {place} by {much}, which no image "
                "survives: its training diverged, or the file is damaged"
            )


def _norm(layer: Any) -> float:
    """The Frobenius norm of B A, from two small matrices; of a LoKr the product of its factors'."""
    given = layer.named_parameters()
    own = {name: p.detach().double() for name, p in given if not name.startswith("base_layer.")}
    down, up = (own.get(f"lora_{side}.{ADAPTER}.weight") for side in "AB")
    if down is None or up is None or len(down) != up.shape[1]:
        return float(torch.stack([value.norm() for value in own.values()]).prod())
    down, up = down.flatten(1), up.flatten(1)
    return float(((down @ down.T) * (up.T @ up)).sum().clamp(min=0).sqrt())


def _place(name: str) -> str:
    for mark in _MARKS:
        name = name.partition(mark)[0]
    return name


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}
