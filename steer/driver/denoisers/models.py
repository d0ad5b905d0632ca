"""The denoisers of a guided call: base, tuned and whatever else its blend brings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from steer.core.errors import UnsupportedPipelineError
from steer.driver.denoisers.blend import BASE, NEGATIVE, TUNED, Blend, Mix, cost, shown
from steer.driver.denoisers.checkpoints.loading import (
    Tuned,
    denoiser_of,
    device_of,
    has_image_adapter,
    load,
)
from steer.driver.denoisers.checkpoints.lora import PREFIX, tuner_layers
from steer.driver.denoisers.forward import Blender
from steer.driver.denoisers.outputs import RLG
from steer.driver.denoisers.parse import parse
from steer.driver.facts import execution_device


@dataclass(frozen=True)
class Arm:
    """One denoiser that may answer.

    Attributes:
        name: For reports.
        module: Its module; the pipeline's own for the base and for LoRAs.
        adapters: LoRAs that are on while it answers, and their strengths.
    """

    name: str
    module: nn.Module
    adapters: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Models:
    """A blend and its arms, ready to stand in for a pipeline's denoiser.

    Attributes:
        pipe: The base.
        component: What it calls its denoiser.
        denoiser: That denoiser.
        arms: By name; `"base"` always.
        blend: What combines them.
        name: For reports: `"RLG(2.0) of base and dpo-sd15"`.
    """

    pipe: Any
    component: str
    denoiser: nn.Module
    arms: Mapping[str, Arm]
    blend: Blend
    name: str

    def mix(self, index: int, steps: int) -> Mix:
        """What answers at a step."""
        return self.blend.mix(index, steps)

    def rows(self, index: int, steps: int) -> int:
        """Denoiser evaluations per row at a step."""
        return self.blend.mix(index, steps).rows

    def cost(self, steps: int) -> int:
        """Denoiser evaluations per row at the dearest step."""
        return cost(self.blend, steps)

    @contextmanager
    def answering(self, place: Callable[[], tuple[int, int]], lane: int) -> Iterator[None]:
        """The pipeline's denoiser answers with the blend; put back whatever happens.

        Args:
            place: The step that is being asked and how many there are.
            lane: Rows of the pipeline's batch, without those that guidance adds.
        """
        self._check()
        with ExitStack() as stack:
            stack.enter_context(self._at_hand())
            switch = stack.enter_context(adapters_of(self.denoiser))
            blender = Blender(self, place, lane, switch)
            stack.enter_context(blender.installed())
            yield

    def _check(self) -> None:
        """Raise UnsupportedPipelineError for what was changed since `guided` was made."""
        component, kind = self.component, type(self.pipe).__name__
        if denoiser_of(self.pipe)[1] is not self.denoiser:
            raise UnsupportedPipelineError(
                f"pipe.{component} was replaced after steer.guided(..., tuned=...) was made: make "
                "the guided pipeline again"
            )
        if getattr(self.denoiser, "is_cache_enabled", False):
            raise UnsupportedPipelineError(
                f"pipe.{component} has a feature cache, which would hand one model's features to "
                f"another: call pipe.{component}.disable_cache() first"
            )
        lora = any(arm.adapters for arm in self.arms.values())
        if lora and any(layer.merged for layer in tuner_layers(self.denoiser)):
            raise UnsupportedPipelineError(
                f"pipe.{component} has fused LoRA adapters, which cannot be switched apart from "
                f"those of {self.name}: call pipe.unfuse_lora() first"
            )
        for arm in self.arms.values():
            if has_image_adapter(self.denoiser) != has_image_adapter(arm.module):
                raise UnsupportedPipelineError(
                    f"pipe.{component} has an IP-Adapter and {arm.name!r} has none, or the other "
                    f"way round: {kind} would ignore the image in one of them"
                )

    @contextmanager
    def _at_hand(self) -> Iterator[None]:
        """Further denoisers where the pipeline computes, and without gradients for their weights.

        Where the base is offloaded, they go back when the call is over.
        """
        modules = {id(arm.module): arm.module for arm in self.arms.values()}
        modules.pop(id(self.denoiser), None)
        device = execution_device(self.pipe, device_of(self.denoiser))
        offloaded = device_of(self.denoiser) != device
        homes = [(module, device_of(module)) for module in modules.values()]
        flagged = [w for module in modules.values() for w in module.parameters() if w.requires_grad]
        try:
            for module, home in homes:
                if home != device:
                    module.to(device)
            for weight in flagged:
                weight.requires_grad_(False)
            yield
        finally:
            for weight in flagged:
                weight.requires_grad_(True)
            for module, home in homes:
                if offloaded and home != device:
                    module.to(home)


def models_for(pipe: Any, tuned: Any, blend: Any) -> Models | None:
    """The models of `steer.guided(pipe, tuned=..., blend=...)`; `None` for the base alone.

    Args:
        pipe: The base.
        tuned: See `steer.checkpoints.load`.
        blend: A `Blend`, or one as text; without it the tuned model answers alone.

    Raises:
        ValueError: A blend without its tuned model, or something that is no blend.
        CheckpointError, UnsupportedPipelineError: From loading.
    """
    if isinstance(blend, str):
        blend = parse(blend)
    if blend is not None and not isinstance(blend, Blend):
        raise ValueError(
            f"blend={blend!r}: give a blend such as steer.RLG(2.0) or steer.denoisers.SwitchAt(0.6)"
        )
    if blend is None and tuned is None:
        return None
    if blend is not None and tuned is None and blend.needs_tuned:
        raise ValueError(
            f"blend={blend!r} without tuned: it needs a tuned model beside the base; give "
            "tuned='dpo-sd15' (see `steer tuned`), a path or a denoiser"
        )
    component, denoiser = denoiser_of(pipe)
    loaded = {} if tuned is None else {TUNED: load(pipe, tuned)}
    for name, source in ({} if blend is None else blend.sources).items():
        loaded[name] = load(pipe, source)
    arms = {BASE: Arm("base", denoiser, {}), **{k: _arm(v) for k, v in loaded.items()}}
    arms.setdefault(TUNED, arms[BASE])
    if blend is not None and blend.inherited:
        arms[NEGATIVE] = inheriting(arms, blend.inherited)
    name = _named(blend, arms)
    return Models(pipe, component, denoiser, arms, blend or RLG(1.0), name)


def _arm(tuned: Tuned) -> Arm:
    adapters = {} if tuned.adapter is None else {tuned.adapter: tuned.weight}
    return Arm(tuned.name, tuned.module, adapters)


def _named(blend: Blend | None, arms: Mapping[str, Arm]) -> str:
    if blend is None:
        return arms[TUNED].name
    others = [arm.name for name, arm in arms.items() if name != BASE and arm.name != "base"]
    return f"{shown(blend)} of {' and '.join(['base', *others])}"


def inheriting(arms: Mapping[str, Arm], share: float) -> Arm:
    """The negative model with what tuning changed: `negative + share * (tuned - base)`.

    Two LoRAs are simply both on; two whole models make a third one, summed in float32.

    Raises:
        ValueError: A LoRA beside a whole model, whose sum is neither.
    """
    base, tuned, negative = arms[BASE], arms[TUNED], arms[NEGATIVE]
    if tuned is base:
        return negative
    merge = f"{1.0 - share:g}"
    if tuned.adapters and negative.adapters:
        both = dict(negative.adapters)
        for name, weight in tuned.adapters.items():
            both[name] = both.get(name, 0.0) + share * weight
        return replace(negative, adapters=both)
    if tuned.adapters or negative.adapters:
        lora, whole = (tuned, negative) if tuned.adapters else (negative, tuned)
        raise ValueError(
            f"merge={merge}: {lora.name!r} is a LoRA and {whole.name!r} a whole denoiser, which "
            "cannot be summed: use merge=1 (the negative model as it is), or two of one kind"
        )
    if tuner_layers(negative.module) or tuner_layers(tuned.module):
        raise ValueError(
            f"merge={merge}: the denoisers given carry adapters of their own: fuse them first, "
            "or use merge=1 (the negative model as it is)"
        )
    state, own = tuned.module.state_dict(), _base_state(base.module)
    if any(value.is_meta for value in own.values()):
        raise UnsupportedPipelineError(
            f"merge={merge}: the base is offloaded, so its weights cannot be summed: make the "
            "guided pipeline before enable_sequential_cpu_offload()"
        )
    module = copy.deepcopy(negative.module)
    total = {
        name: _sum(value, state[name], own[name], share)
        for name, value in module.state_dict().items()
    }
    module.load_state_dict(total)
    return replace(negative, module=module)


def _base_state(module: nn.Module) -> dict[str, Tensor]:
    return {name.replace(".base_layer.", "."): t for name, t in module.state_dict().items()}


def _sum(negative: Tensor, tuned: Tensor, base: Tensor, share: float) -> Tensor:
    if not negative.is_floating_point():
        return negative
    change = tuned.to(negative.device).float() - base.to(negative.device).float()
    return (negative.float() + share * change).to(negative.dtype)


@contextmanager
def adapters_of(denoiser: nn.Module) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A switch for the denoiser's LoRAs, `switch({name: strength})`; all is put back at the end.

    The user's own active adapters stay on in every arm; those that steer attached are on only
    where an arm names them. Flags are set directly, since peft's own switch also marks weights as
    trainable.
    """
    layers = tuner_layers(denoiser)
    before = [(layer, layer._active_adapter, layer._disable_adapters) for layer in layers]
    own = {id(layer): _users(layer) for layer in layers}

    def switch(adapters: Mapping[str, float]) -> None:
        for layer in layers:
            here: dict[str, float] = getattr(layer, "scaling", {})
            added = [name for name in adapters if name in here]
            for name in added:
                layer.set_scale(name, adapters[name])  # pyright: ignore[reportAttributeAccessIssue]
            names = [*own[id(layer)], *added]
            layer._disable_adapters = not names
            if names:
                layer._active_adapter = names

    try:
        yield switch
    finally:
        for layer, active, disabled in before:
            layer._active_adapter, layer._disable_adapters = active, disabled


def _users(layer: BaseTunerLayer) -> list[str]:
    """Active adapters of a layer that are not steer's."""
    if layer.disable_adapters:
        return []
    return [name for name in layer.active_adapters if not name.startswith(PREFIX)]
