"""A LoRA's file as diffusers reads it: the denoiser's part, its names, its options."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from steer.core.errors import CheckpointError
from steer.core.weights.reading import check_unmerged, load_state_dict, read_json
from steer.driver.denoisers.checkpoints.source import Found


_TEXT = ("text_encoder", "lora_te")
_PEFT = "base_model.model."
_PARTS = ("unet.", "transformer.")
_WHOLE = (*_PARTS, "lora_", "diffusion_model.", "model.diffusion_model.")
_BARE = (".lora_", "_lora.", ".alpha")
"""In names of peft, of attention processors (diffusers before 0.21), and of their strengths."""
_FILE = "pytorch_lora_weights.safetensors"
_OPTIONS = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"),
    *("use_rslora", "use_dora", "bias", "lora_bias"),
)
"""The entries of an `adapter_config.json` that say how its matrices are used."""
_START = "init_lora_weights"
_HARMLESS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base's weights as they were."""


def prepared(found: Found, component: str, label: str, folder: Path) -> tuple[Path, str]:
    """The file as diffusers reads it: names with the denoiser's prefix, no text encoders.

    Args:
        found: Where it is.
        component: What the pipeline calls its denoiser.
        label: What to call it in errors.
        folder: Where to write it, if it must be written anew.

    Returns:
        Its path, and twelve hexadecimal digits that identify its bytes.

    Raises:
        CheckpointError: Numbers that are not finite, nothing for the denoiser, scales of DoRA that
            diffusers would drop, or options that change what the matrices mean.
    """
    if len(found.files) != 1:
        raise CheckpointError(f"tuned={label!r}: a LoRA in several files; merge them into one")
    path = found.files[0]
    state = load_state_dict(path)
    _check_numbers(state, label)
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
    names: dict[str, str] = {}
    for name in kept:
        check_unmerged(names, _name(name, component), name, str(path))
    renamed = {_name(name, component): value.contiguous() for name, value in kept.items()}
    written = _options_of(metadata, path)
    options = _known({k: v for k, v in written.items() if not k.startswith(_TEXT)}, label)
    if found.config is not None:
        config = read_json(found.config)
        _check_start(config, label)
        if any(name not in state for name in renamed):  # as peft writes both
            options = {key: config[key] for key in _OPTIONS if key in config}
    if renamed.keys() != state.keys() or options != written:
        named = {_prefixed(key, component): value for key, value in options.items()}
        metadata.pop(LORA_ADAPTER_METADATA_KEY, None)
        if named:
            metadata[LORA_ADAPTER_METADATA_KEY] = json.dumps(named)
        path = folder / _FILE
        save_file(renamed, path, metadata)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _options_of(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The options that diffusers wrote into the file's metadata."""
    try:
        options = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise CheckpointError(
            f"checkpoint {str(path)!r}: {LORA_ADAPTER_METADATA_KEY} in its metadata is no JSON "
            "object: save it again as diffusers or peft write it"
        )
    return options


def _check_numbers(state: Mapping[str, Tensor], label: str) -> None:
    broken = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"tuned={label!r}: {len(broken)} tensors hold numbers that are not finite "
            f"({broken[0]}): its training diverged, or the file is damaged"
        )
    scales = [name for name in state if "dora_scale" in name]
    if scales:
        raise CheckpointError(
            f"tuned={label!r}: a DoRA in the format of Kohya or LyCORIS, whose scales "
            f"({len(scales)}, {scales[0]}) diffusers leaves out: merge it into its base with the "
            "tool that trained it, and pass that denoiser"
        )
    off = [name for name, value in state.items() if name.endswith(".alpha") and not value.any()]
    if off:
        raise CheckpointError(
            f"tuned={label!r}: alpha is 0 in {len(off)} layers ({off[0]}), so they would change "
            "nothing: set it to the rank in the file, or remove it, for strength 1"
        )


def _known(options: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Options that the installed peft knows; a newer one also writes those that are not set.

    Raises:
        CheckpointError: One of the others is used.
    """
    _check_start(options, label)
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    strange = {key for key in options if key.rpartition(".")[2] not in known}
    used = sorted(key for key in strange if options[key])
    if used:
        raise CheckpointError(
            f"tuned={label!r}: this LoRA uses {used[0]!r}, which peft {version('peft')} does not "
            "know: install a newer peft"
        )
    return {key: value for key, value in options.items() if key not in strange}


def _check_start(options: Mapping[str, Any], label: str) -> None:
    """Raise CheckpointError for a LoRA that is to be added to weights other than its base's."""
    for key, value in options.items():
        if key.rpartition(".")[2] == _START and value not in _HARMLESS:
            raise CheckpointError(
                f"tuned={label!r}: trained with {_START}={value!r}, which changed the base's "
                "weights as well: convert it to a plain LoRA with peft's "
                "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            )


def _name(name: str, component: str) -> str:
    plain = name.removeprefix(_PEFT)
    bare = any(mark in plain for mark in _BARE) and not plain.startswith(_WHOLE)
    return f"{component}.{plain}" if bare else plain


def _prefixed(option: str, component: str) -> str:
    return option if option.startswith(_PARTS) else f"{component}.{option}"
