"""The arguments of one pipeline call: read, and widened to more images per prompt."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.driver.facts import execution_device
from steer.driver.noise import can_widen
from steer.driver.solver_state import Generators


_log = logging.getLogger("steer")
_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
_STEPS = 50  # where a pipeline names no number of steps


class Call:
    """The arguments of one pipeline call, bound to the signature of its `__call__`.

    Attributes:
        prompts: Number of prompts.
        images: Images per prompt of the plain call.
        texts: The prompts as text; empty where the call gives embeddings only.
        generator: The user's generator, a list of them, or None.
        steps: Denoising steps asked for (second-order solvers make more denoiser calls).
        size: Image height and width asked for, None where not given.

    Raises:
        UnsupportedPipelineError: Something that is no diffusers pipeline with a scheduler.
        TypeError: Arguments that the pipeline does not take.
    """

    def __init__(self, pipe: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        check_pipeline(pipe)
        signature = inspect.signature(pipe.__call__)
        self.pipe = pipe
        self._bound = signature.bind(*args, **kwargs)
        self._given = self._bound.arguments
        defaults = {
            name: p.default for name, p in signature.parameters.items() if p.default is not p.empty
        }
        self._values = {**defaults, **self._given}
        self._count = next((name for name in _COUNTS if name in signature.parameters), None)
        self.images: int = (self._values.get(self._count) if self._count else 1) or 1
        self.texts, self.prompts = self._read_prompts()
        self.generator: Generators = self._values.get("generator")
        self.size = (_whole(self._values.get("height")), _whole(self._values.get("width")))
        self.steps = self._read_steps()
        self.latent_output = self._values.get("output_type") == "latent"

    @cached_property
    def device(self) -> Any:
        """Where the pipeline computes."""
        return execution_device(self.pipe)

    def _read_prompts(self) -> tuple[list[str], int]:
        prompt = self._values.get("prompt")
        if isinstance(prompt, str):
            return [prompt], 1
        if isinstance(prompt, list | tuple) and prompt:
            return [str(p) for p in prompt], len(prompt)
        embeddings = self._values.get("prompt_embeds")
        if isinstance(embeddings, Tensor):
            return [], len(embeddings)
        return [], _whole(self._values.get("batch_size")) or 1

    def _read_steps(self) -> int:
        for name in ("timesteps", "sigmas"):
            if self._values.get(name) is not None:
                return len(self._values[name])
        return _whole(self._values.get("num_inference_steps")) or _STEPS

    def run(self, lane_width: int) -> Any:
        """Call the pipeline with a batch `lane_width` times as large; at 1 exactly as asked."""
        if lane_width == 1:
            return self.pipe(*self._bound.args, **self._bound.kwargs)
        bound = inspect.BoundArguments(self._bound.signature, self._given.copy())
        given = bound.arguments
        embeddings = [name for name in given if self._is_per_prompt(name)]
        rows = self.images * lane_width
        if self._count is not None and not embeddings and not self._mixes_masks:
            given[self._count] = rows
            return self.pipe(*bound.args, **bound.kwargs)
        # not every pipeline repeats embeddings that it is given, so repeat all inputs here
        for name in embeddings:
            given[name] = given[name].repeat_interleave(rows, 0)
        for name in [n for n in given if "prompt" in n and n not in embeddings]:
            if isinstance(given[name], list | tuple):
                given[name] = [text for text in given[name] for _ in range(rows)]
            elif name == "prompt" and isinstance(given[name], str):
                given[name] = [given[name]] * rows
        if self._count is not None:
            given[self._count] = 1
        return self.pipe(*bound.args, **bound.kwargs)

    @property
    def guidance_rows(self) -> int:
        """Denoiser rows per latent, read off the arguments: 2 with classifier-free guidance.

        Only for pipelines without `do_classifier_free_guidance` (PixArt, Flux); 1 for the others.
        """
        given, tells = self._values, hasattr(type(self.pipe), "do_classifier_free_guidance")
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
        (diffusers 0.42, `prompt_attention_mask.repeat(num_images_per_prompt, 1)`).
        """
        return self.prompts > 1 and any("attention_mask" in name for name in self._values)

    def _is_per_prompt(self, name: str) -> bool:
        value = self._given[name]
        if not ("embeds" in name or "attention_mask" in name) or "ip_adapter" in name:
            return False
        return isinstance(value, Tensor) and len(value) == self.prompts

    def widest(self, populations: Sequence[int]) -> int:
        """The default lane width: at most 4, and such that no lane needs padding."""
        if not can_widen(self.pipe):
            return 1
        return max(w for w in range(1, 5) if all(size % w == 0 for size in populations))

    def warn_of_cut_prompts(self) -> None:
        """Warn of prompts that are longer than every tokenizer's window, and say what is cut."""
        for text in self.texts:
            cuts = [_cut(tokenizer, text, window) for tokenizer, window in self._tokenizers()]
            if cuts and all(cuts):
                message = (
                    f"prompt {text[:40]!r}... is longer than the tokenizer's window; the pipeline "
                    f"does not see {min(cuts, key=len)!r}: shorten the prompt"
                )
                warnings.warn(message, UserWarning, stacklevel=3)
                _log.warning(message)

    def _tokenizers(self) -> list[tuple[Any, int]]:
        found = []
        for suffix in ("", "_2", "_3", "_4"):
            tokenizer = getattr(self.pipe, f"tokenizer{suffix}", None)
            encoder = getattr(self.pipe, f"text_encoder{suffix}", None)
            window = getattr(tokenizer, "model_max_length", None)
            if encoder is None or not isinstance(window, int) or not callable(tokenizer):
                continue
            limit = _whole(self._values.get("max_sequence_length"))
            clip = "CLIP" in type(tokenizer).__name__
            found.append((tokenizer, window if limit is None or clip else limit))
        return found


def check_pipeline(pipe: Any) -> None:
    """Raise UnsupportedPipelineError unless `pipe` is callable and has a steppable scheduler."""
    scheduler = getattr(pipe, "scheduler", None)
    if callable(pipe) and all(hasattr(scheduler, name) for name in ("step", "set_timesteps")):
        return
    what = "has no scheduler with step and set_timesteps" if callable(pipe) else "is not callable"
    raise UnsupportedPipelineError(
        f"pipe={type(pipe).__name__}: {what}, so its loop cannot be driven; pass a diffusers "
        "pipeline such as StableDiffusionPipeline.from_pretrained(...)"
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _cut(tokenizer: Any, text: str, window: int) -> str:
    """The end of a text that does not fit into a tokenizer's window."""
    if len(text) < window:  # a token has at least one character
        return ""
    seen = tokenizer(text, truncation=True, max_length=window).input_ids
    whole = tokenizer(text, truncation=False, verbose=False).input_ids
    lost = len(whole) - len(seen)
    if lost <= 0:
        return ""
    closing = 1 if whole[-1] == seen[-1] else 0
    return tokenizer.decode(whole[len(seen) - closing : len(whole) - closing]).strip()
