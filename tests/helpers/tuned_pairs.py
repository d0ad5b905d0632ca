"""Tuned twins of the tiny pipelines' denoisers, LoRAs for them, and slow references of blends."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from families import arguments
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from steer.methods import BestOfN
from steer.pipeline.guided import guided


LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


def pictures(out: Any) -> Tensor:
    """Images of an output, or frames."""
    return out.images if hasattr(out, "images") else out.frames


def component(pipe: Any) -> str:
    return "unet" if hasattr(pipe, "unet") else "transformer"


def twin(pipe: Any, seed: int = 1, size: float = 0.05) -> nn.Module:
    """The pipeline's denoiser with noise on its weights: another checkpoint of one architecture."""
    module = copy.deepcopy(getattr(pipe, component(pipe)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator).to(weight))
    return module.requires_grad_(False)


def with_denoiser(pipe: Any, module: nn.Module, **call: Any) -> Tensor:
    """The plain pipeline's output with another denoiser in it."""
    name = component(pipe)
    own = getattr(pipe, name)
    setattr(pipe, name, module)
    try:
        return pictures(pipe(**call))
    finally:
        setattr(pipe, name, own)


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward for images and videos alike."""
    return images.flatten(1).mean(1)


def drawn(pipe: Any, family: str, given: dict[str, Any], **call: Any) -> tuple[Tensor, Any]:
    """A guided call without a search: its images and report."""
    out = guided(pipe, brightness, method=BestOfN(1), **given)(**arguments(family, **call))
    return pictures(out), out.report


class Reference(nn.Module):
    """A module in the denoiser's place that answers with any function of whole calls."""

    def __init__(self, base: nn.Module, answer: Any) -> None:
        super().__init__()
        self.base, self.answer = base, answer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.answer(args, kwargs),)


def adapted(pipe: Any, seed: int = 2, alpha: int = 6, size: float = 0.3) -> tuple[Any, nn.Module]:
    """A copy of the denoiser with a random LoRA of rank 2 in it, and the LoRA's configuration."""
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=LAYERS)
    module: Any = copy.deepcopy(getattr(pipe, component(pipe)))
    module.add_adapter(config, adapter_name="default")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "lora_" in name:
                weight.copy_(size * torch.randn(weight.shape, generator=generator))
    return config, module.requires_grad_(False)


def fused(pipe: Any, lora: Any, weight: float = 1.0) -> nn.Module:
    """The denoiser with `weight * alpha / rank * B A` added to its weights, by hand."""
    module: Any = copy.deepcopy(getattr(pipe, component(pipe)))
    layers = dict(module.named_modules())
    with torch.no_grad():
        for name, layer in lora.named_modules():
            if hasattr(layer, "lora_A"):
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                layers[name].weight.add_(weight * layer.scaling["default"] * (b @ a))
    return module


def save_lora(pipe: Any, config: Any, lora: Any, folder: Path) -> Path:
    """The LoRA as diffusers writes it."""
    name = component(pipe)
    layers = {f"{name}_lora_layers": get_peft_model_state_dict(lora)}
    metadata = {f"{name}_lora_adapter_metadata": {**config.to_dict()}}
    type(pipe).save_lora_weights(folder, **layers, **metadata)
    return folder / "pytorch_lora_weights.safetensors"
