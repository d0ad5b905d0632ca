"""LoRAs around a denoiser's own layers, while a call needs them.

A layer that a LoRA adapts answers, for a while, with peft's layer around its own forward, whatever
that is: adapters of the user, offloading hooks, quantized weights. Nothing is added to the module
tree, so that nothing else sees the LoRA: no switch of the user's adapters, no saving, no counting
of parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from steer.driver.denoisers.checkpoints.lora import ADAPTER, Lora
from steer.driver.denoisers.checkpoints.peft_layers import layer_of


class Switch:
    """Puts LoRAs on a denoiser, and takes them off again.

    Args:
        denoiser: Its layers are found by name each time, since the user may have wrapped them.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._on: dict[Lora, float] = {}
        self._changes: list[_Change] = []

    def __call__(self, loras: Mapping[Lora, float]) -> None:
        """Have these on, with these strengths, and no others.

        Raises:
            UnsupportedPipelineError: A layer is gone, or fused with others.
        """
        outer = {id(change.layer): change for change in self._changes}
        if loras == self._on and all(change.holds for change in outer.values()):
            return
        self.off()
        for lora, strength in loras.items():
            for name, layer in lora.layers.items():
                self._put(layer_of(self._denoiser, name), layer, strength)
        self._on = dict(loras)

    def off(self) -> None:
        """All layers as they were; a forward that was replaced by others since stays theirs."""
        self._on = {}
        while self._changes:
            change = self._changes[-1]
            if change.holds:
                change.layer.__dict__.update(change.before)
                if not change.before:
                    change.layer.__dict__.pop("forward")
            change.around.__dict__.pop("base_layer", None)
            self._changes.pop()

    def _put(self, layer: nn.Module, around: Any, strength: float) -> None:
        around.set_scale(ADAPTER, strength)
        around.__dict__["base_layer"] = _Own(layer, layer.forward)
        here = layer.__dict__
        before = {"forward": here["forward"]} if "forward" in here else {}
        self._changes.append(_Change(layer, around, around.forward, before))
        here["forward"] = self._changes[-1].forward


@dataclass(frozen=True)
class _Change:
    """One layer with one LoRA around it: the LoRA's forward, and the layer's own if it had one."""

    layer: nn.Module
    around: nn.Module
    forward: Any
    before: Mapping[str, Any]

    @property
    def holds(self) -> bool:
        return self.layer.__dict__.get("forward") is self.forward


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
