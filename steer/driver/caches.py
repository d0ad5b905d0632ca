"""Feature caches on a denoiser, which reuse activations of the call before; and guiders that do."""

from __future__ import annotations

from typing import Any

from torch import nn

from steer.core.errors import UnsupportedPipelineError
from steer.driver.facts import parts


_PACKAGES = ("DeepCache", "cache_dit", "para_attn")
"""Packages that put caches of their own in place of a denoiser's or a block's forward."""


def check_caches(pipe: Any, in_order: bool, who: str) -> None:
    """Refuse a search for which a cache would reuse activations of other latents.

    A guider's momentum is such a cache too.

    A cache assumes that every denoiser call is the next step of the same rows. That is true for one
    lane that runs once from the first step to the last, as in a plain call. It is false with
    several lanes, lookahead, short runs, steps back, rows that change places, or other weights.

    Args:
        pipe: The pipeline; every part of it is looked at.
        in_order: Whether the search asks as a plain call does.
        who: What asks, for the error.

    Raises:
        UnsupportedPipelineError: A part has a cache that does not fit.
    """
    momentum = getattr(getattr(pipe, "guider", None), "momentum_buffer", None)
    if momentum is not None and not in_order:
        raise UnsupportedPipelineError(
            f"pipe.guider is a {type(pipe.guider).__name__} with momentum, which takes every "
            f"answer for the next step of the same rows; {who} asks in another order: make the "
            "guider without momentum"
        )
    for name, part in parts(pipe).items():
        package = _package(part)
        if package == "DeepCache":
            raise UnsupportedPipelineError(
                f"pipe.{name} is wrapped by DeepCache, which looks its place up in the scheduler's "
                "list of timesteps, and that follows the search: call helper.disable() on the "
                "DeepCacheSDHelper first"
            )
        if not in_order and (package is not None or _is_cached(part)):
            off = (
                f"call pipe.{name}.disable_cache()" if package is None else f"switch {package} off"
            )
            raise UnsupportedPipelineError(
                f"pipe.{name} has a feature cache, which takes every denoiser call for the next "
                f"step of the same rows; {who} asks in another order: {off} first"
            )


def _is_cached(part: nn.Module) -> bool:
    """Whether `enable_cache` was called, or one of diffusers' cache hooks was put on by hand."""
    if getattr(part, "is_cache_enabled", False):
        return True
    registries: list[Any] = [getattr(m, "_diffusers_hook", None) for m in part.modules()]
    hooks = [hook for r in registries for hook in getattr(r, "hooks", {}).values()]
    return any(_caches(type(hook).__module__) for hook in hooks)


def _caches(module: str) -> bool:
    file = module.rpartition(".")[2]
    return module.startswith("diffusers.hooks.") and ("cache" in file or "broadcast" in file)


def _package(part: nn.Module) -> str | None:
    """The package whose cache sits in the part, where it is one of those known."""
    for module in part.modules():
        forward: Any = vars(module).get("forward")
        for found in (type(module), getattr(forward, "func", forward)):
            package = (getattr(found, "__module__", None) or "").partition(".")[0]
            if package in _PACKAGES:
                return package
    return None
