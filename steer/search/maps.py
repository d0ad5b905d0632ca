"""Flow maps: models that are told where a step leads, and jump there in one denoiser call."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.core.types import Population, Query, Step
from steer.search.context import Context


def check_map(ctx: Context, method: str, argument: str = "lookahead") -> None:
    """Raise UnsupportedPipelineError unless the call's model is a flow map."""
    if not ctx.model.is_flow_map:
        raise UnsupportedPipelineError(
            f"{method}: {argument}='map' needs a flow map (AnyFlow), and the denoiser of "
            f"{ctx.model.name} is not told where a step leads; use {argument}='x0'"
        )


def to_clean(step: Step) -> Step:
    """A step of a flow model that leads to clean latents at once."""
    return replace(step, alpha_next=1.0, sigma_next=0.0)


def jump_to_clean(
    ctx: Context, population: Population, step: Step
) -> Generator[Query, Tensor, Population]:
    """Where the flow takes every row in the end, by one denoiser call of a flow map.

    x - sigma u(x, sigma -> 0), u the average velocity: X_{t,1}(x) of Sabour et al. 2025
    (arXiv:2511.22688), along the deterministic flow the same at every step.

    Args:
        ctx: Where the denoiser is asked.
        population: Latents at `step`.
        step: A step of a flow model.
    """
    output = yield from ctx.denoise(population, to_clean(step))
    return population.at(step.x0(population.x, output))
