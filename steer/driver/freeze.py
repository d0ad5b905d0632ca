"""Weights during gradients with respect to latents: frozen, and on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from steer.core.errors import UnsupportedPipelineError
from steer.driver.facts import parts


@contextmanager
def frozen(pipe: Any) -> Iterator[None]:
    """Set `requires_grad=False` on all weights of the pipeline; restored afterwards.

    Autograd then stores only what gradients with respect to the latents need, and never writes to
    the weights' `grad`.
    """
    weights = [w for part in parts(pipe).values() for w in part.parameters() if w.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def check_resident(pipe: Any) -> None:
    """Raise UnsupportedPipelineError where offloading would move weights before the backward pass.

    Only denoiser and VAE are checked: text encoders may be offloaded.
    """
    for name, part in parts(pipe).items():
        if name.startswith(("unet", "transformer", "vae")) and any(
            map(is_offloaded, part.modules())
        ):
            raise UnsupportedPipelineError(
                f"pipe.{name} is offloaded, so its weights are gone when gradients need them: move "
                "the pipeline to the device (pipe.to('cuda'), after pipe.remove_all_hooks() where "
                "offloading is on), or use gradient='zero-order'"
            )


def is_offloaded(module: nn.Module) -> bool:
    """Whether hooks of accelerate or diffusers move the module's weights."""
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", None) or (hook,):
        if type(one).__name__ == "CpuOffload" or getattr(one, "offload", False):
            return True
    registry: Any = getattr(module, "_diffusers_hook", None)
    return "group_offloading" in getattr(registry, "hooks", ())
