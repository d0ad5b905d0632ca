"""The arguments of one pipeline call: read, and widened to more images per prompt."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from steer.core.errors import AGAIN, UnsupportedPipelineError
from steer.core.warn import warn
from steer.driver.call_checks import check_pipeline, check_values
from steer.driver.facts import execution_device, is_modular
from steer.driver.noise import can_widen
from steer.driver.solver_state import Generators


_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
_PROMPT = re.compile(r"(negative_)?prompt(_\d)?")
_EMBEDDING = re.compile(r"(?!.*ip_adapter).*(embeds|attention_mask|seqlens).*")  # of prompts
_NOT_INPUTS = ("latents", "generator", "timesteps", "sigmas", "ip_adapter", "callback")
_STEPS = 50  # where a pipeline names no number of steps

_UNREPEATED = {"KolorsPAGPipeline": ("ip_adapter_image_embeds",)}
"""Arguments that a pipeline does not repeat for several images (it drops what it has repeated)."""


class Call:
    """The arguments of one pipeline call, bound to the signature of its `__call__`.

    Attributes:
        prompts: Number of prompts.
        images: Images per prompt of the plain call.
        texts: The prompts as text; empty where the call gives embeddings only.
        generator: The user's generator, a list of them, or None.
        steps: Denoising steps asked for (second-order solvers make more denoiser calls).
        values: All arguments by name, defaults included.
        output_type: The pipeline's `output_type`, None where it has none.

    Raises:
        UnsupportedPipelineError: Something that is no diffusers pipeline with a scheduler.
        TypeError: Arguments that the pipeline does not take.
    """

    def __init__(self, pipe: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        check_pipeline(pipe)
        if is_modular(pipe):
            from steer.driver.modular.adapted import adapted

            pipe, kwargs = adapted(pipe, kwargs)
        signature = inspect.signature(pipe.__call__)
        self.pipe = pipe
        self._bound = signature.bind(*args, **kwargs)
        self._given = self._bound.arguments
        defaults = {
            name: p.default for name, p in signature.parameters.items() if p.default is not p.empty
        }
        self.values = {**defaults, **self._given}
        self._count = next((name for name in _COUNTS if name in signature.parameters), None)
        check_values(self._given, self._count)
        self.images: int = (self.values.get(self._count) if self._count else 1) or 1
        self.texts, self.prompts = self._read_prompts()
        self.generator: Generators = self.values.get("generator")
        self.steps = self._read_steps()
        self.has_callbacks = any(
            value is not None for name, value in self._given.items() if name.startswith("callback")
        )
        self.output_type: str | None = self.values.get("output_type")
        self.latent_output = self.output_type == "latent"

    @cached_property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return execution_device(self.pipe)

    def _read_prompts(self) -> tuple[list[str], int]:
        prompt = self.values.get("prompt", self.values.get("content_prompt"))  # VisualCloze
        if isinstance(prompt, str):
            return [prompt], 1
        if isinstance(prompt, list | tuple) and prompt:
            return [str(p) for p in prompt], len(prompt)
        embeddings = [name for name in self._given if name.startswith("prompt_embeds")]
        without = () if "prompt" in self.values else ("class_labels", "image")
        for name in (*embeddings, "image_embeds", *without):
            value = self.values.get(name)
            one = name == "image" and getattr(value, "ndim", 4) < 4
            if isinstance(value, Tensor | np.ndarray | list) and len(value) and not one:
                return [], len(value)
        return [], _whole(self.values.get("batch_size")) or 1

    def _read_steps(self) -> int:
        for name in ("timesteps", "sigmas"):
            if self.values.get(name) is not None:
                return len(self.values[name])
        return _whole(self.values.get("num_inference_steps")) or _STEPS

    def run(self, lane_width: int) -> Any:
        """Call the pipeline with a batch `lane_width` times as large; at 1 exactly as asked."""
        bound = self._copied()
        if lane_width == 1:
            return self.pipe(*bound.args, **bound.kwargs)
        given = bound.arguments
        rows = self.images * lane_width
        if self._count is not None and not self._needs_repeats:
            given[self._count] = rows
            return self.pipe(*bound.args, **bound.kwargs)
        for name in given:
            given[name] = self._repeated(name, rows)
        if self._count is not None:
            given[self._count] = 1
        return self.pipe(*bound.args, **bound.kwargs)

    def returned(self, output: Any) -> Any:
        """The output as the call asked for it: modular pipelines take `output="images"`."""
        return output.asked(self.values["output"]) if is_modular(self.pipe) else output

    def _copied(self) -> inspect.BoundArguments:
        """The arguments, with lists and dicts of their own: some pipelines write into them.

        (`KolorsPAGPipeline` puts its IP-Adapter embeddings into the list that it was given.)
        """
        given = {
            name: copy.copy(value) if type(value) in (list, dict) else value
            for name, value in self._given.items()
        }
        return inspect.BoundArguments(self._bound.signature, given)

    def again(self, seeds: Sequence[int]) -> Any:
        """Call the pipeline once more with other randomness, one image per prompt.

        Args:
            seeds: One per prompt. The global generator is seeded by the first, and put back.

        Raises:
            AttributeError, IndexError, RuntimeError, TypeError, ValueError: The pipeline's own,
                perhaps since it takes no list of generators: see `alone`.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self._seeded({}, generators if len(generators) > 1 else generators[0], seeds[0])

    def alone(self, prompt: int, seed: int, generator: torch.Generator | None = None) -> Any:
        """Call the pipeline with one of the prompts, one image, and other randomness.

        Args:
            prompt: Its place.
            seed: Of the global generator, which is put back, and of the call's own.
            generator: In place of a new one.
        """
        own = set(self._own_inputs)
        given = {
            name: [value[prompt]] if isinstance(value, tuple) else value[prompt : prompt + 1]
            for name, value in self._given.items()
            if _PROMPT.fullmatch(name) or _EMBEDDING.fullmatch(name) or name in own
            if self._is_per_prompt(name)
        }
        return self._seeded(given, generator or torch.Generator().manual_seed(seed), seed)

    def _seeded(self, given: dict[str, Any], generator: Generators, seed: int) -> Any:
        bound = self._copied()
        bound.arguments.pop("latents", None)
        bound.arguments |= given
        if self._count is not None:
            bound.arguments[self._count] = 1
        if "generator" in self.values:
            bound.arguments["generator"] = generator
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            return self.pipe(*bound.args, **bound.kwargs)

    @property
    def _needs_repeats(self) -> bool:
        """Whether prompts are repeated here, because the pipeline might not, or in another order.

        Not every pipeline repeats embeddings that it is given (SD3, Flux).
        """
        embeddings = self._embeddings
        return self._mixes_masks or (
            bool(embeddings) and all(self._is_per_prompt(name) for name in embeddings)
        )

    @property
    def _embeddings(self) -> list[str]:
        """Embeddings of prompts that the call gives, and what belongs to them."""
        given = self._given
        return [n for n in given if _EMBEDDING.fullmatch(n) and given[n] is not None]

    def _repeated(self, name: str, rows: int) -> Any:
        """An argument with what it has for each prompt repeated `rows` times, prompt by prompt."""
        value = self._given[name]
        text = _PROMPT.fullmatch(name) is not None
        if text and isinstance(value, str):
            return [value] * (self.prompts * rows)
        if not (text or _EMBEDDING.fullmatch(name)) or not self._is_per_prompt(name):
            return value
        if isinstance(value, Tensor):
            return value.repeat_interleave(rows, 0)
        return [own for own in value for _ in range(rows)]

    @property
    def _own_inputs(self) -> list[str]:
        """Arguments with something for each of several prompts that cannot be repeated here.

        Pipelines repeat images, masks and the like image by image (A B A B) or prompt by prompt
        (A A B B), encode them with random draws before or after, and take lists of them for
        several prompts, several ControlNets or several references.
        """
        unrepeated = _UNREPEATED.get(type(self.pipe).__name__, ())
        found = [name for name in unrepeated if self._given.get(name) is not None]
        if found or self.prompts == 1:
            return found
        return [
            name
            for name, value in self._given.items()
            if not any(word in name for word in _NOT_INPUTS)
            and not _PROMPT.fullmatch(name)
            and (
                value is not None and not self._is_per_prompt(name)
                if _EMBEDDING.fullmatch(name)
                else _has_rows(value, self.prompts)
            )
        ]

    def allowed(self, lane_width: int) -> int:
        """The lane width, or 1 with a warning where several prompts have inputs of their own."""
        own = self._own_inputs
        if lane_width == 1 or not own:
            return lane_width
        why = f"each of {self.prompts} prompts has its own {own[0]}, which pipelines repeat in "
        why += "orders of their own"
        if own[0] in _UNREPEATED.get(type(self.pipe).__name__, ()):
            why = f"{type(self.pipe).__name__} does not repeat {own[0]} for several images"
        message = f"lane_width={lane_width}: {why}; the call runs with lane_width=1, same results"
        warn(message, stacklevel=4)
        return 1

    @property
    def guidance_rows(self) -> int:
        """Denoiser rows per latent, read off the arguments: 2 with classifier-free guidance.

        Only for pipelines without `do_classifier_free_guidance` (PixArt, Flux); 1 for the others.
        """
        given, tells = self.values, hasattr(type(self.pipe), "do_classifier_free_guidance")
        if tells or "negative_prompt" not in given:
            return 1
        apart = "true_cfg_scale" in given  # beside an embedded scale; needs a negative prompt
        negative = [given.get(name) for name in ("negative_prompt", "negative_prompt_embeds")]
        scale = given.get("true_cfg_scale" if apart else "guidance_scale")
        on = isinstance(scale, int | float) and scale > 1
        return 2 if on and (not apart or any(text is not None for text in negative)) else 1

    @property
    def _mixes_masks(self) -> bool:
        """Whether several prompts of several images each may get each other's attention masks.

        Sana, Lumina, LTX and others repeat embeddings prompt by prompt and masks image by image
        (diffusers 0.42, `prompt_attention_mask.repeat(num_images_per_prompt, 1)`); so do Qwen-Image
        and HunyuanImage with `prompt_embeds_mask`.
        """
        masks = ("attention_mask", "embeds_mask")
        return self.prompts > 1 and any(mask in name for name in self.values for mask in masks)

    def _is_per_prompt(self, name: str) -> bool:
        value = self._given[name]
        return isinstance(value, Tensor | np.ndarray | list | tuple) and len(value) == self.prompts

    @property
    def can_widen(self) -> bool:
        """Whether the pipeline's batch may be made wider than the call's own."""
        return can_widen(self.pipe) and not self._own_inputs


def check_callbacks(call: Call) -> None:
    """Raise UnsupportedPipelineError for callbacks of diffusers that switch things off for good.

    `SDCFGCutoffCallback` and its relatives turn guidance or an adapter off at a step; a particle
    whose steps come later would never have had them.
    """
    for value in call.values.values():
        if isinstance(value, PipelineCallback | MultiPipelineCallbacks):
            raise UnsupportedPipelineError(
                f"{type(value).__name__} switches something off in the middle of a call, which a "
                f"search cannot undo for the next particle; {AGAIN}"
            )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _has_rows(value: Any, rows: int) -> bool:
    """Whether there are as many images, arrays or tensors in a value, or in a list in it."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 1 and len(value) == rows
    if not isinstance(value, list | tuple) or any(
        isinstance(item, str | int | float | None) for item in value
    ):
        return False
    return len(value) == rows or any(_has_rows(item, rows) for item in value)


def of_prompts(call: Mapping[str, Any], prompts: int) -> dict[str, Any]:
    """The arguments for a list of prompts: a text, such as a negative prompt, is each one's."""
    return {
        name: [value] * prompts if isinstance(value, str) and _PROMPT.fullmatch(name) else value
        for name, value in call.items()
    }
