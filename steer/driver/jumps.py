"""Flow maps: a denoiser that is told where a step leads, asked for other jumps than its pipeline's.

A flow map's output is the average velocity of the flow from a step's noise level to the one that
the step leads to (Boffi et al. 2024, arXiv:2406.07507; Gu et al. 2026, AnyFlow, arXiv:2605.13724).
A query's step says both levels. The pipeline passes the timestep of its own next point; where the
query's is another one, that is put in its place.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from steer.core.types import Step
from steer.driver.facts import first_denoiser, jump_argument
from steer.driver.replaced import replaced


def jump_of(step: Step, steps: Sequence[Step]) -> float | None:
    """The timestep that a step leads to, where the schedule's own step leads elsewhere.

    Timesteps are taken to be in proportion to sigma, as those of flow models are.
    """
    if step.sigma_next == steps[step.index].sigma_next:
        return None
    return float(step.t) * step.sigma_next / step.sigma


@contextmanager
def jumping(pipe: Any, where: Callable[[], float | None]) -> Iterator[None]:
    """The pipeline's denoiser jumps to the timestep `where()`; to its own for `None`.

    Does nothing to a denoiser that is no flow map.
    """
    name, found = jump_argument(pipe), first_denoiser(pipe)
    if name is None or found is None:
        yield
        return
    _, module = found
    inner = module.forward
    signature = inspect.signature(type(module).forward)

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        there = where()
        if there is None:
            return inner(*args, **kwargs)
        given = signature.bind(module, *args, **kwargs)
        given.arguments[name] = torch.full_like(given.arguments[name], there)
        return inner(*given.args[1:], **given.kwargs)

    with replaced(module, {"forward": forward}):
        yield
