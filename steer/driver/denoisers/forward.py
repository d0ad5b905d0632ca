"""A blend in place of a denoiser's `forward`, so that the pipeline need not know of it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from steer.core.errors import UnsupportedPipelineError
from steer.driver.denoisers.attached import Switch, switching
from steer.driver.denoisers.blend import Mix, Weights, shown
from steer.driver.denoisers.checkpoints.loading import denoiser_of, device_of, has_image_adapter
from steer.driver.denoisers.checkpoints.peft_layers import active_adapters
from steer.driver.denoisers.models import Arm, Models
from steer.driver.denoisers.tensors import halves, joined, proxied, rows_of, weighted
from steer.driver.facts import execution_device
from steer.driver.replaced import replaced


_COND, _UNCOND = "cond", "uncond"
_SCALED = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
_CHUNKS = re.compile(r"^\s*(\w+), *(\w+) *= *\w+\.chunk\(2", re.MULTILINE)


@contextmanager
def answering(models: Models, place: Callable[[], tuple[int, int]], lane: int) -> Iterator[None]:
    """The pipeline's denoiser answers with the blend; put back whatever happens.

    Args:
        models: Arms and blend.
        place: The step that is being asked and how many there are.
        lane: Rows of the pipeline's batch, without those that guidance adds.
    """
    _check(models)
    with ExitStack() as stack:
        switch = stack.enter_context(switching(models.denoiser))
        stack.enter_context(_resident(models, switch))
        blender = Blender(models, place, lane, switch)
        stack.enter_context(blender.installed())
        yield


def _check(models: Models) -> None:
    """Raise UnsupportedPipelineError for what was changed since `guided` was made."""
    component, kind = models.component, type(models.pipe).__name__
    if denoiser_of(models.pipe)[1] is not models.denoiser:
        raise UnsupportedPipelineError(
            f"pipe.{component} was replaced after steer.guided(..., tuned=...) was made: make "
            "the guided pipeline again"
        )
    if getattr(models.denoiser, "is_cache_enabled", False):
        raise UnsupportedPipelineError(
            f"pipe.{component} has a feature cache, which would hand one model's features to "
            f"another: call pipe.{component}.disable_cache() first"
        )
    own = active_adapters(models.denoiser)
    for arm in models.arms.values():
        if own and not active_adapters(arm.module):
            raise UnsupportedPipelineError(
                f"pipe.{component} has adapters of its own ({', '.join(own)}), which {arm.name!r} "
                "lacks, since it is a denoiser with weights of its own: switch them off "
                "(pipe.disable_lora()), or load them into the tuned denoiser as well and pass that"
            )
        if has_image_adapter(models.denoiser) != has_image_adapter(arm.module):
            raise UnsupportedPipelineError(
                f"pipe.{component} has an IP-Adapter and {arm.name!r} has none, or the other "
                f"way round: {kind} would ignore the image in one of them"
            )


@contextmanager
def _resident(models: Models, switch: Switch) -> Iterator[None]:
    """LoRAs and further denoisers where the pipeline computes, and no gradients for their weights.

    Where the base is offloaded, they go back when the call is over.
    """
    modules = {id(arm.module): arm.module for arm in models.arms.values()}
    modules.pop(id(models.denoiser), None)
    device = execution_device(models.pipe, device_of(models.denoiser))
    offloaded = device_of(models.denoiser) != device
    homes = [(module, device_of(module)) for module in modules.values()]
    loras = {lora for arm in models.arms.values() for lora in arm.loras}
    flagged = [w for module in modules.values() for w in module.parameters() if w.requires_grad]
    try:
        for module, home in homes:
            if home != device:
                module.to(device)
        for lora in loras:
            switch.place(lora, device)
        for weight in flagged:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in flagged:
            weight.requires_grad_(True)
        for module, home in homes:
            if offloaded and home != device:
                module.to(home)
        for lora in loras if offloaded else ():
            for layer in lora.layers.values():
                layer.to(device_of(models.denoiser))


class Blender:
    """Evaluates a blend in the pipeline's denoiser calls.

    Only `forward` of the one module is replaced, and only on the instance: hooks (offloading,
    layerwise casting), compiled code and the denoiser's other attributes stay.

    Args:
        models: The denoisers and their blend.
        place: Returns the step that is evaluated, and the number of steps.
        lane: Rows of the pipeline's batch, without those that guidance adds.
        switch: Puts LoRAs on the denoiser.
    """

    def __init__(
        self,
        models: Models,
        place: Callable[[], tuple[int, int]],
        lane: int,
        switch: Switch,
    ) -> None:
        self.models, self.place, self.lane, self.switch = models, place, lane, switch
        self._site: nn.Module = getattr(models.pipe, models.component)
        self._inner: Callable[..., Any] = self._site.forward
        self._compiled: Any = getattr(self._site, "_compiled_call_impl", None)
        self._context: str | None = None
        self._order: bool | None = None
        self._asked = {_COND: 0, _UNCOND: 0}
        self._recomputed: Arm | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the denoiser's `forward`; restored afterwards."""
        wrapped = functools.wraps(self._inner)(functools.partial(self._forward))
        stand_ins: dict[str, Any] = {"forward": wrapped}
        if self._compiled is not None:
            stand_ins["_compiled_call_impl"] = None  # calls of compiled modules pass forward by
        context = getattr(self._site, "cache_context", None)
        if callable(context):
            stand_ins["cache_context"] = self._named(context)
        with replaced(self._site, stand_ins):
            yield
        self._check_asked()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        mix = self.models.mix(*self.place())
        if not mix.split:
            return self._sum(mix.conditional, args, kwargs)
        unconditional = mix.unconditional or {}
        match self._slot(args, kwargs):
            case "cond":
                return self._sum(mix.conditional, args, kwargs)
            case "uncond" if not mix.proxy:
                return self._sum(unconditional, args, kwargs)
            case "both":
                return self._apart(mix, unconditional, args, kwargs)
        kind = type(self.models.pipe).__name__
        raise UnsupportedPipelineError(
            f"blend={shown(self.models.blend)}: {kind} asks for the null prompt in a "
            "call of its own, without the prompt that a proxy is made of; use "
            "NegativeGuidance, or a pipeline that batches both (Stable Diffusion, XL, 3)"
        )

    def _apart(self, mix: Mix, unconditional: Weights, args: Any, kwargs: Any) -> Any:
        """Null prompt and prompt of one batch, each by its own denoisers."""
        total = 2 * self.lane
        (null_args, args), (null, kwargs) = halves(args, total), halves(kwargs, total)
        if mix.proxy:
            null = proxied(null, kwargs, mix.proxy, shown(self.models.blend))
        low = self._sum(unconditional, null_args, null)
        return joined(low, self._sum(mix.conditional, args, kwargs))

    def _sum(self, weights: Weights, args: Any, kwargs: Any) -> Any:
        """The weighted sum of outputs; a single one with weight 1 as it is."""
        parts = [(name, weight) for name, weight in weights.items() if weight]
        answers = [self._answer(name, args, kwargs) for name, _ in parts]
        return weighted(answers, [weight for _, weight in parts])

    def _answer(self, name: str, args: Any, kwargs: Any) -> Any:
        arm = self.models.arms[name]
        if arm.module is not self.models.denoiser:
            return arm.module(*args, **kwargs)
        scale = _lora_scale(kwargs)
        self._check_recomputed(arm)
        self.switch({lora: scale * strength for lora, strength in arm.loras.items()})
        if self._compiled is None:
            return self._inner(*args, **kwargs)
        own = {"forward": self._inner, "_compiled_call_impl": self._compiled}
        with replaced(self._site, own):
            return self._site(*args, **kwargs)

    def _check_recomputed(self, arm: Arm) -> None:
        """Raise where a backward pass would run one arm's layers again with another's LoRAs on."""
        checkpointing = getattr(self.models.denoiser, "is_gradient_checkpointing", False)
        if not (checkpointing and torch.is_grad_enabled()):
            return
        before, self._recomputed = self._recomputed, arm
        if before is not None and before.loras != arm.loras:
            component = self.models.component
            raise UnsupportedPipelineError(
                f"pipe.{component} recomputes its layers in the backward pass, where the LoRAs of "
                f"{before.name!r} and {arm.name!r} could not be told apart: call "
                f"pipe.{component}.disable_gradient_checkpointing() first"
            )

    def _slot(self, args: Any, kwargs: Any) -> str:
        """What a call evaluates: the prompt ("cond"), the null prompt ("uncond"), or "both"."""
        rows = rows_of(args, kwargs)
        if rows == 2 * self.lane:
            if self._order is None:
                self._order = _null_first(self.models.pipe)
            if self._order:
                return "both"
        elif rows == self.lane and self._context in self._asked:
            if self._context == _COND:
                self._check_asked()
            self._asked[self._context] += 1
            return self._context
        elif rows == self.lane and "skip_layers" in kwargs:
            return _COND
        raise self._no_null(f"made a call of {rows} rows for {self.lane} images in which it is not")

    def _check_asked(self) -> None:
        """Raise if prompts were evaluated in separate calls, and the null prompt never was."""
        if self._asked[_COND] and not self._asked[_UNCOND]:
            raise self._no_null("never asks for it")

    def _no_null(self, what: str) -> UnsupportedPipelineError:
        return UnsupportedPipelineError(
            f"blend={shown(self.models.blend)} answers the null prompt with another model, and "
            f"{type(self.models.pipe).__name__} {what}: turn classifier-free guidance on "
            "(guidance_scale above 1; true_cfg_scale and negative_prompt for Flux and Qwen-Image), "
            "or use steer.RLG, which works without"
        )

    def _named(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`cache_context`, by which pipelines say which prompt a call is for."""

        @contextmanager
        def context(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            outer, self._context = self._context, name
            try:
                with original(name, *args, **kwargs):
                    yield
            finally:
                self._context = outer

        return context


def _lora_scale(kwargs: Mapping[str, Any]) -> float:
    """The strength that a call gives to all LoRAs, in the argument that diffusers reads it from."""
    given = (kwargs.get(name) for name in _SCALED)
    return next((float(a["scale"]) for a in given if isinstance(a, Mapping) and "scale" in a), 1.0)


def _null_first(pipe: Any) -> bool:
    """Whether the pipeline batches the null prompt before the prompt, by its source code."""
    try:
        source = inspect.getsource(type(pipe).__call__)
    except (OSError, TypeError):
        return False
    pairs = _CHUNKS.findall(inspect.cleandoc(source))
    named = [pair for pair in pairs if any("uncond" in name for name in pair)]
    return bool(named) and all("uncond" in first for first, _ in named)
