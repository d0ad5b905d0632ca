"""A denoiser's layers, below and beside the adapters that the user has on it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from steer.core.errors import UnsupportedPipelineError


_FUSED = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


def tuner_layers(denoiser: nn.Module) -> dict[str, BaseTunerLayer]:
    """The layers of a denoiser that carry adapters, by their names in it."""
    found = denoiser.named_modules()
    return {name: layer for name, layer in found if isinstance(layer, BaseTunerLayer)}


def active_adapters(denoiser: nn.Module) -> list[str]:
    """The names of the adapters that are switched on in some layer, sorted."""
    layers = [layer for layer in tuner_layers(denoiser).values() if not layer.disable_adapters]
    return sorted({name for layer in layers for name in layer.active_adapters})


def plain_state(denoiser: nn.Module) -> dict[str, Tensor]:
    """Its tensors without those of adapters, under the names that they have without adapters."""
    wrapped = tuner_layers(denoiser)
    made = {}
    for name, value in denoiser.state_dict().items():
        parts = name.split(".")
        adapter = False
        for end in range(len(parts)):
            inside = ".".join(parts[:end]) in wrapped
            adapter = adapter or (inside and parts[end] != "base_layer")
        if not adapter:
            made[name.replace(".base_layer.", ".")] = value
    return made


def base_of(layer: nn.Module | None) -> nn.Module | None:
    """The layer itself, below the adapters that it may carry."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def dtype_of(weight: Any, denoiser: nn.Module) -> torch.dtype:
    """What a LoRA on a weight is computed in: the weight's dtype, unless that only stores it."""
    if _computes(weight):
        return weight.dtype
    return next((w.dtype for w in denoiser.parameters() if _computes(w)), torch.float32)


def layer_of(denoiser: nn.Module, name: str) -> nn.Module:
    """The layer of that name, which a LoRA adapts, with the adapters that it carries.

    Raises:
        UnsupportedPipelineError: It is gone, or its weights are not used since they were fused.
    """
    kind = type(denoiser).__name__
    path, _, leaf = name.rpartition(".")
    try:
        parent = denoiser.get_submodule(path)
        layer = parent.get_submodule(leaf)
    except AttributeError as error:
        raise UnsupportedPipelineError(
            f"the {kind} has no layer {name!r} any more, which the tuned LoRA adapts: load the "
            "pipeline and the LoRA again"
        ) from error
    if leaf in _FUSED and _fused(parent):
        raise UnsupportedPipelineError(
            f"{name} of the {kind} is fused with others, so that the tuned LoRA would have no "
            "effect on it: call pipe.unfuse_qkv_projections() first"
        )
    return layer


def _fused(attention: nn.Module) -> bool:
    """Whether one matrix is used for queries, keys and values.

    Unfusing leaves the flag of diffusers' older class as it is, and changes its processor.
    """
    flag: bool = getattr(attention, "fused_projections", False)
    older = isinstance(attention, Attention)
    return flag and (not older or "Fused" in type(attention.processor).__name__)


def _computes(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.itemsize > 1
