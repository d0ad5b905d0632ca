"""What gradients with respect to the latents ask of the pipeline's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from steer.core.errors import UnsupportedPipelineError
from steer.driver.facts import parts


@contextmanager
def frozen(pipe: Any) -> Iterator[None]:
    """The pipeline's weights with `requires_grad=False`; every flag is put back as it was.

    A recorded denoiser call then keeps only what gradients with respect to the latents need, and
    nothing can reach the weights' `grad`.
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
    """Raise UnsupportedPipelineError where offloading takes weights away before the backward pass.

    Only the parts that are differentiated matter: text encoders may be offloaded.
    """
    for name, part in parts(pipe).items():
        if name.startswith(("unet", "transformer", "vae")) and any(map(_wanders, part.modules())):
            raise UnsupportedPipelineError(
                f"pipe.{name} is offloaded, so its weights are gone when gradients need them: move "
                "the pipeline to the device (pipe.to('cuda'), after pipe.remove_all_hooks() where "
                "offloading is on), or use gradient='zero-order'"
            )


def _wanders(module: nn.Module) -> bool:
    """Whether hooks of accelerate or diffusers move the module's weights."""
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", None) or (hook,):
        if type(one).__name__ == "CpuOffload" or getattr(one, "offload", False):
            return True
    registry: Any = getattr(module, "_diffusers_hook", None)
    return "group_offloading" in getattr(registry, "hooks", ())
