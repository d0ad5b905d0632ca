"""LoRAs around a denoiser's own layers, while a call needs them.

A layer that a LoRA adapts answers, for a while, with peft's layer around its own forward, whatever
that is: adapters of the user, offloading hooks, quantized weights. Nothing is added to the module
tree, so that nothing else sees the LoRA: no switch of the user's adapters, no saving, no counting
of parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from steer.core.errors import UnsupportedPipelineError
from steer.driver.denoisers.checkpoints.lora import ADAPTER, Lora
from steer.driver.denoisers.checkpoints.peft_layers import base_of, dtype_of, layer_of
from steer.driver.freeze import is_offloaded


_Site: TypeAlias = tuple[nn.Module, nn.Module]
"""A layer of the denoiser, and the LoRA's layer that is put around it."""
_Change: TypeAlias = tuple[nn.Module, nn.Module, Any, Any]
"""Both of them, the forward that was put there, and the one that was there, if any."""


class Switch:
    """Puts LoRAs on a denoiser, and takes them off again; for one call.

    Args:
        denoiser: Its layers are found by name, since the user may have wrapped them.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._sites: dict[Lora, list[_Site]] = {}
        self._on: dict[Lora, float] = {}
        self._changes: list[_Change] = []

    def place(self, lora: Lora, device: torch.device) -> None:
        """Move a LoRA to where the denoiser's layers are, or to `device` if they are offloaded.

        It takes the dtype that they compute in.

        Raises:
            UnsupportedPipelineError: A layer is gone or fused; or a DoRA, which is computed from
                the base's weights, where those are offloaded in parts.
        """
        for layer, around in self._sites_of(lora):
            weight = getattr(base_of(layer), "weight", None)
            home = weight.device if isinstance(weight, Tensor) else device
            where = device if home.type in ("cpu", "meta") else home
            dtype = dtype_of(weight, self._denoiser)
            names, weights = zip(*around.named_parameters(), strict=True)
            if any(w.device != where or w.dtype != dtype for w in weights):
                around.to(where, dtype)
            if any("magnitude" in name for name in names):
                self._check_whole()

    def __call__(self, loras: Mapping[Lora, float]) -> None:
        """Have these on, with these strengths, and no others."""
        if loras == self._on and self._holds():
            return
        self.off()
        for lora, strength in loras.items():
            for layer, around in self._sites_of(lora):
                self._put(layer, around, strength)
        self._on = dict(loras)

    def off(self) -> None:
        """All layers as they were; a forward that was replaced by others since stays theirs."""
        self._on = {}
        while self._changes:
            layer, around, forward, before = self._changes[-1]
            here = layer.__dict__
            if here.get("forward") is forward and before is None:
                del here["forward"]
            elif here.get("forward") is forward:
                here["forward"] = before
            around.__dict__.pop("base_layer", None)
            self._changes.pop()

    def _put(self, layer: nn.Module, around: Any, strength: float) -> None:
        around.set_scale(ADAPTER, strength)
        around.__dict__["base_layer"] = _Own(layer, layer.forward)
        forward = around.forward
        self._changes.append((layer, around, forward, layer.__dict__.get("forward")))
        layer.__dict__["forward"] = forward

    def _holds(self) -> bool:
        outer = {id(layer): (layer, forward) for layer, _, forward, _ in self._changes}
        return all(layer.__dict__.get("forward") is f for layer, f in outer.values())

    def _sites_of(self, lora: Lora) -> list[_Site]:
        if lora not in self._sites:
            pairs = lora.layers.items()
            self._sites[lora] = [(layer_of(self._denoiser, n), around) for n, around in pairs]
        return self._sites[lora]

    def _check_whole(self) -> None:
        if any(is_offloaded(part) for part in self._denoiser.modules() if part != self._denoiser):
            raise UnsupportedPipelineError(
                "the tuned LoRA is a DoRA, which is computed from the base's weights, and these "
                "are offloaded in parts: use pipe.enable_model_cpu_offload() or pipe.to('cuda')"
            )


@contextmanager
def switching(denoiser: nn.Module) -> Iterator[Switch]:
    """A switch for LoRAs on a denoiser; all are off again at the end, whatever happens."""
    switch = Switch(denoiser)
    try:
        yield switch
    finally:
        switch.off()


class _Own:
    """A layer as it answers without the LoRA. All else that peft asks of it is the layer's."""

    def __init__(self, layer: nn.Module, forward: Any) -> None:
        self.layer, self.forward = layer, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)
