"""Loading LoRA files into a pipeline's denoiser: one copy of the weights for base and tuned model.

The file goes through diffusers' own loaders. Between guided calls the adapter stays in the
denoiser, switched off: the pipeline alone then returns what it did before, bit for bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import convert_unet_state_dict_to_peft
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from steer.core.errors import CheckpointError, UnsupportedPipelineError, first_line
from steer.core.weights.reading import load_state_dict, read_json
from steer.driver.denoisers.checkpoints.origin import seems_made_for
from steer.driver.denoisers.checkpoints.source import Found


PREFIX = "steer-"
_TEXT = ("text_encoder", "lora_te")
_PEFT = "base_model.model."
_PARTS = ("unet.", "transformer.")
_WHOLE = (*_PARTS, "lora_", "diffusion_model.", "model.diffusion_model.")
_FILE = "pytorch_lora_weights.safetensors"
_OPTIONS = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"),
    *("use_rslora", "use_dora", "bias", "lora_bias"),
)
"""The entries of an `adapter_config.json` that say how its matrices are used."""


def attach(
    pipe: Any, component: str, denoiser: nn.Module, found: Found, label: str
) -> tuple[str, str]:
    """Load a LoRA into the pipeline's denoiser, switched off; the same weights only once.

    Returns:
        The adapter's name, and twelve hexadecimal digits that identify the weights.

    Raises:
        CheckpointError: It adapts no layer of the denoiser, or layers that the denoiser does not
            have or has in another shape; the first is named.
        UnsupportedPipelineError: The pipeline takes no LoRA, or has fused ones.
    """
    if not hasattr(pipe, "load_lora_weights"):
        raise UnsupportedPipelineError(
            f"tuned={label!r} is a LoRA, and {type(pipe).__name__} has no load_lora_weights: fuse "
            "it into a copy of the denoiser, and pass that"
        )
    layers = tuner_layers(denoiser)
    if any(layer.merged for layer in layers):
        raise UnsupportedPipelineError(
            f"tuned={label!r}: pipe.{component} has fused LoRA adapters, which cannot be switched "
            "apart from this one: call pipe.unfuse_lora(), or pipe.unload_lora_weights(), first"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = _prepared(found, component, label, Path(folder))
        digits = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        name = f"{PREFIX}{digits}"
        if name not in getattr(denoiser, "peft_config", {}):
            _check(_converted(pipe, file, component, label), denoiser, label)
            _load(pipe, denoiser, file, name, label)
    return name, digits


def tuner_layers(denoiser: nn.Module) -> list[BaseTunerLayer]:
    """The layers of a denoiser that carry adapters."""
    return [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]


def _load(pipe: Any, denoiser: nn.Module, file: Path, name: str, label: str) -> None:
    before = {
        id(layer): (layer._active_adapter, layer._disable_adapters)
        for layer in tuner_layers(denoiser)
    }
    try:
        with _quiet():
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    except Exception as error:  # diffusers and peft raise many kinds
        raise CheckpointError(
            f"tuned={label!r}: diffusers cannot load this LoRA into {type(pipe).__name__} "
            f"({type(error).__name__}: {first_line(error)}): give the pipeline that it was made for"
        ) from error
    for layer in tuner_layers(denoiser):
        layer.set_requires_grad(name, False)
        known = before.get(id(layer))
        layer._active_adapter, layer._disable_adapters = known or (name, True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress diffusers' warning that a LoRA has nothing for the text encoders."""

    def telling(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No LoRA keys associated to")

    logger = logging.getLogger("diffusers.loaders.lora_base")
    logger.addFilter(telling)
    try:
        yield
    finally:
        logger.removeFilter(telling)


def _prepared(found: Found, component: str, label: str, folder: Path) -> Path:
    """The file as diffusers reads it: names with the denoiser's prefix, no text encoders."""
    if len(found.files) != 1:
        raise CheckpointError(f"tuned={label!r}: a LoRA in several files; merge them into one")
    path = found.files[0]
    state = load_state_dict(path)
    broken = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"tuned={label!r}: {len(broken)} tensors hold numbers that are not finite "
            f"({broken[0]}): its training diverged, or the file is damaged"
        )
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
    text = [name for name in state if name.startswith(_TEXT)]
    if text:
        warnings.warn(
            f"tuned={label!r} also adapts text encoders ({len(text)} tensors), which stay the "
            "base's: only the denoiser changes",
            UserWarning,
            stacklevel=2,
        )
    kept = {name: value for name, value in state.items() if name not in text}
    if not kept:
        raise CheckpointError(f"tuned={label!r}: it adapts text encoders only, not the {component}")
    options = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    strange = _unknown(options, label)
    if not text and not strange and not _is_bare(kept, component):
        return path
    options = {key: value for key, value in options.items() if key not in strange}
    if found.config is not None:
        config = read_json(found.config)
        options = {key: config[key] for key in _OPTIONS if key in config}
    if options:
        named = {_prefixed(key, component): value for key, value in options.items()}
        metadata[LORA_ADAPTER_METADATA_KEY] = json.dumps(named)
    renamed = {_name(name, component): value.contiguous() for name, value in kept.items()}
    save_file(renamed, folder / _FILE, metadata)
    return folder / _FILE


def _unknown(options: Mapping[str, Any], label: str) -> set[str]:
    """Options that a newer peft wrote and left at nothing, which the installed one does not know.

    Raises:
        CheckpointError: One of them is used.
    """
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    strange = {key for key in options if key.rpartition(".")[2] not in known}
    used = sorted(key for key in strange if options[key])
    if used:
        raise CheckpointError(
            f"tuned={label!r}: this LoRA uses {used[0]!r}, which peft {version('peft')} does not "
            "know: install a newer peft"
        )
    return strange


def _is_bare(state: Mapping[str, Tensor], component: str) -> bool:
    """Whether names are a module's own, or peft's, rather than a pipeline's."""
    return any(_name(name, component) != name for name in state)


def _name(name: str, component: str) -> str:
    plain = name.removeprefix(_PEFT)
    whole = plain.startswith(_WHOLE) or ".lora_" not in plain
    return plain if whole else f"{component}.{plain}"


def _prefixed(option: str, component: str) -> str:
    return option if option.startswith(_PARTS) else f"{component}.{option}"


def _converted(pipe: Any, file: Path, component: str, label: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the LoRA's matrices in the denoiser's own names, peft's form."""
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
    return _shapes(own)


def _check(shapes: Mapping[str, tuple[int, ...]], denoiser: nn.Module, label: str) -> None:
    """Raise CheckpointError unless every pair of matrices fits a layer."""
    layers = dict(denoiser.named_modules())
    for name, shape in shapes.items():
        place, mark, _ = name.partition(".lora_")
        if not mark or not name.endswith((".lora_A.weight", ".lora_B.weight")):
            continue
        weight = getattr(_base(layers.get(place)), "weight", None)
        side = 1 if name.endswith(".lora_A.weight") else 0
        if isinstance(weight, Tensor) and (
            not weight.is_floating_point() or weight.shape[side] == shape[side]
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


def _base(layer: nn.Module | None) -> nn.Module | None:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}
