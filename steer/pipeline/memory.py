"""Running out of memory: the call is repeated with half the lane width, or explained."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from steer.core.errors import OutOfMemoryError, first_line
from steer.core.shortage import is_shortage
from steer.core.warn import warn
from steer.driver.facts import execution_device
from steer.driver.solver_state import Generators
from steer.pipeline.run import Run


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Randomness:
    """The states of all that a call may draw from: the user's generators and the global ones."""

    generators: tuple[tuple[torch.Generator, Tensor], ...]
    cpu: Tensor
    cuda: tuple[torch.device, Tensor] | None

    @classmethod
    def of(cls, generator: Generators, device: Any) -> Randomness:
        """As they are now."""
        given = generator if isinstance(generator, list | tuple) else [generator]
        states = tuple((g, g.get_state()) for g in given if isinstance(g, torch.Generator))
        place = torch.device(device)
        cuda = (place, torch.cuda.get_rng_state(place)) if place.type == "cuda" else None
        return cls(states, torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """As they were then."""
        for generator, state in self.generators:
            generator.set_state(state)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda[1], self.cuda[0])


def with_room(
    attempt: Callable[[Run], T], run: Run, again: Callable[[Run, int], Run]
) -> tuple[Run, T, list[Run]]:
    """What `attempt` returns; where memory is short, of another with half the lane, and so on.

    Args:
        attempt: Runs the pipeline.
        run: The first attempt's.
        again: Puts everything back as it was, and makes the run with another lane width.

    Returns:
        The run that succeeded, what came of it, and the runs that failed.

    Raises:
        OutOfMemoryError: The lane cannot be halved any more.
    """
    failed: list[Run] = []
    while True:
        try:
            return run, attempt(run), failed
        except Exception as error:
            if not is_shortage(error):
                raise
            if run.lane_width == 1:
                raise OutOfMemoryError(_complaint(run, error, failed)) from error
            message = (
                f"out of memory with {_lane(run)} ({first_line(error)}): the call begins again "
                f"with half as wide a lane; callbacks see its steps once more, and giving "
                f"lane_width={run.lane_width // 2} saves the attempt"
            )
        warn(message, stacklevel=3)
        _free(run.pipe)
        failed.append(run)
        run = again(run, run.lane_width // 2)
        for other in failed:
            spent = {"lane_width": other.lane_width // 2, "rows": other.ledger.denoiser_rows}
            run.trace.log("memory", **spent)


def _free(pipe: Any) -> None:
    """Let go of what the first attempt left on the device."""
    if hasattr(pipe, "maybe_free_model_hooks"):  # offloaded parts go back, feature caches empty
        pipe.maybe_free_model_hooks()
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _complaint(run: Run, error: Exception, before: list[Run]) -> str:
    """The numbers, and the ways out."""
    tried = "".join(f", and before that with {_lane(other)}" for other in before)
    prompts = f"one prompt at a time instead of {len(run.texts)}, " if len(run.texts) > 1 else ""
    images = "fewer images per prompt, " if run.images > 1 else ""
    return (
        f"out of memory with {_lane(run)}{tried} ({first_line(error)}){_device(run.pipe)}: use "
        f"{prompts}{images}a smaller image, pipe.vae.enable_slicing(), "
        "pipe.enable_model_cpu_offload(), or a method that records no gradients through the "
        "denoiser"
    )


def _lane(run: Run) -> str:
    """A lane in numbers."""
    rows = f"a lane of {run.rows * run.lane_width} rows ({len(run.texts)} prompts"
    rows += f" x {run.images} images x lane width {run.lane_width})"
    height, width = run.values.get("height"), run.values.get("width")
    size = f", images of {height}x{width}" if height and width else ""
    lane = run.source.lane
    latents = "" if lane is None else f", latents of {'x'.join(map(str, lane.shape[1:]))}"
    return rows + size + latents


def _device(pipe: Any) -> str:
    """Bytes of the device, where it tells."""
    device = execution_device(pipe)
    if device.type != "cuda":
        return ""
    with suppress(RuntimeError):
        free, total = torch.cuda.mem_get_info(device)
        peak = torch.cuda.max_memory_allocated(device)
        gib = [f"{value / 2**30:.1f} GiB" for value in (free, total, peak)]
        return f", {gib[0]} of {gib[1]} free, {gib[2]} in use at the peak"
    return ""
