"""Further arguments of a pipeline's calls, such as a negative prompt, as commands take them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from steer.core.checks import did_you_mean


OWN = {
    "prompt": "prompts are named on their own",
    "num_inference_steps": "write steps",
    "guidance_scale": "write guidance_scale on its own",
    "generator": "noise follows from the seed",
    "latents": "noise follows from the seed",
    "num_images_per_prompt": "the number of images is named on its own",
    "output_type": "images are stored as 8-bit files",
    "return_dict": "what a call returns is read here",
    "callback_on_step_end": "a search has its own",
}
"""What is not among them, and why."""


def check_call(call: Mapping[str, Any], own: Mapping[str, str] = OWN) -> None:
    """Raise ValueError for an argument that is set in another way."""
    odd = next((name for name in call if name in own), None)
    if odd is not None:
        raise ValueError(f"call.{odd}={call[odd]!r}: {own[odd]}; leave it out of call")


def check_known(pipe: Any, names: Iterable[str]) -> None:
    """Raise ValueError for an argument that the pipeline's call does not take."""
    known = inspect.signature(type(pipe).__call__).parameters
    further = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    if further and not type(pipe).__module__.startswith("diffusers."):
        return  # those of diffusers take further names and leave them unread
    odd = next((name for name in names if name not in known), None)
    if odd is not None:
        hint = did_you_mean(odd, list(known))
        raise ValueError(
            f"call.{odd}: {type(pipe).__name__} takes no {odd!r}; {hint}leave it out of call"
        )


def read_call(texts: Iterable[str]) -> dict[str, Any] | None:
    """The arguments in texts such as `"negative_prompt=blurry"`, `"true_cfg_scale=4"`.

    Values are read as YAML has them, prompts as they are; None without any.

    Raises:
        ValueError: A text without a name, or a name twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, given, value = text.partition("=")
        name = name.strip()
        if not given or not name.isidentifier():
            raise ValueError(f"--call {text!r}: write NAME=VALUE, such as negative_prompt=blurry")
        if name in found:
            raise ValueError(f"--call {text!r}: {name} is given twice")
        found[name] = value if "prompt" in name else _value(value)
    return found or None


def _value(text: str) -> Any:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(found, dict) else found
