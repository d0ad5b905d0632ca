"""The denoisers of a guided call: base, tuned, and those that its blend brings."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from steer.core.errors import UnsupportedPipelineError
from steer.driver.denoisers.blend import BASE, NEGATIVE, TUNED, Blend, Mix, cost, shown
from steer.driver.denoisers.checkpoints.loading import Tuned, denoiser_of, load
from steer.driver.denoisers.checkpoints.lora import Lora
from steer.driver.denoisers.checkpoints.peft_layers import plain_state, tuner_layers
from steer.driver.denoisers.outputs import RLG
from steer.driver.denoisers.parse import parse_blend
from steer.driver.facts import is_modular


@dataclass(frozen=True)
class Arm:
    """One denoiser of a blend.

    Attributes:
        name: For reports.
        module: Its module; the pipeline's own for the base and for LoRAs.
        loras: LoRAs that are put around its layers, and their strengths.
    """

    name: str
    module: nn.Module
    loras: Mapping[Lora, float]


@dataclass(frozen=True, eq=False)
class Models:
    """A blend and its denoisers, ready to stand in for a pipeline's denoiser.

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
        """The weighted sum at a step."""
        return self.blend.mix(index, steps)

    def rows(self, index: int, steps: int) -> int:
        """Denoiser evaluations per row at a step."""
        return self.blend.mix(index, steps).rows

    def cost(self, steps: int) -> int:
        """Denoiser evaluations per row, the largest number over the steps."""
        return cost(self.blend, steps)


def models_for(pipe: Any, tuned: Any, blend: Any) -> Models | None:
    """The models of `steer.guided(pipe, tuned=..., blend=...)`; `None` for the base alone.

    Args:
        pipe: The base.
        tuned: See `load` in `steer.driver.denoisers.checkpoints`.
        blend: A `Blend`, or one as text; without it the tuned model answers alone.

    Raises:
        ValueError: A blend without its tuned model, or something that is no blend.
        CheckpointError: From loading.
        UnsupportedPipelineError: From loading; a modular pipeline.
    """
    if isinstance(blend, str):
        blend = parse_blend(blend)
    if blend is not None and not isinstance(blend, Blend):
        raise ValueError(
            f"blend={blend!r}: give a blend such as steer.RLG(2.0) or steer.denoisers.SwitchAt(0.6)"
        )
    if blend is None and tuned is None:
        return None
    if is_modular(pipe):
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__}: tuned= and blend= need a classic pipeline; put a tuned "
            "denoiser in by pipe.update_components(...)"
        )
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
    loras = {} if tuned.lora is None else {tuned.lora: tuned.weight}
    return Arm(tuned.name, tuned.module, loras)


def _named(blend: Blend | None, arms: Mapping[str, Arm]) -> str:
    if blend is None:
        return arms[TUNED].name
    others = [arm.name for name, arm in arms.items() if name != BASE and arm.name != "base"]
    return f"{shown(blend)} of {' and '.join(['base', *others])}"


def inheriting(arms: Mapping[str, Arm], share: float) -> Arm:
    """The negative model plus a share of the tuning: `negative + share * (tuned - base)`.

    Of two LoRAs both are switched on; two whole models make a third one, summed in float32.

    Raises:
        ValueError: A LoRA beside a whole model.
    """
    base, tuned, negative = arms[BASE], arms[TUNED], arms[NEGATIVE]
    if tuned is base:
        return negative
    merge = f"{1.0 - share:g}"
    if tuned.loras and negative.loras:
        both = dict(negative.loras)
        for lora, weight in tuned.loras.items():
            both[lora] = both.get(lora, 0.0) + share * weight
        return replace(negative, loras=both)
    if tuned.loras or negative.loras:
        lora, whole = (tuned, negative) if tuned.loras else (negative, tuned)
        raise ValueError(
            f"merge={merge}: {lora.name!r} is a LoRA and {whole.name!r} a whole denoiser, which "
            "cannot be summed: use merge=1 (the negative model as it is), or two of one kind"
        )
    if tuner_layers(negative.module) or tuner_layers(tuned.module):
        raise ValueError(
            f"merge={merge}: the denoisers given carry adapters of their own: fuse them first, "
            "or use merge=1 (the negative model as it is)"
        )
    state, own = tuned.module.state_dict(), plain_state(base.module)
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


def _sum(negative: Tensor, tuned: Tensor, base: Tensor, share: float) -> Tensor:
    if not negative.is_floating_point():
        return negative
    change = tuned.to(negative.device).float() - base.to(negative.device).float()
    return (negative.float() + share * change).to(negative.dtype)
