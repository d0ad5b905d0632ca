"""Sampling a population to the end, lane by lane; where a call's solver may begin."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steer.core.errors import UnsupportedSchedulerError
from steer.core.types import Population
from steer.search.context import Context
from steer.search.short_runs import Asking
from steer.search.starts import FIRST_MADE


def sample_all(ctx: Context, population: Population) -> Asking[Population]:
    """All rows through the pipeline's own solver, scored: a lane, all of its steps, the next."""
    finished = []
    for part in ctx.groups(population):
        done = yield from ctx.sample(part)
        ctx.evaluate_lanes(done)
        finished.append(done)
    return Population.join(finished)


def check_beginning(ctx: Context, index: int) -> None:
    """Raise UnsupportedSchedulerError unless the call's solver can begin at a step."""
    step = ctx.steps[index]
    zero = torch.zeros(1, 1, 1, 1, device=step.t.device)
    ctx.make_solver(False).step(step, zero, zero, [(0, FIRST_MADE)])


def beginning(ctx: Context, candidates: Sequence[int]) -> int:
    """The first of these steps at which the call's solver can begin.

    A solver that asks twice per step cannot begin between its two calls, so give a step and its
    neighbour.

    Raises:
        UnsupportedSchedulerError: It can begin at none of them.
    """
    for index in candidates[:-1]:
        try:
            check_beginning(ctx, index)
            return index
        except UnsupportedSchedulerError:
            continue
    check_beginning(ctx, candidates[-1])
    return candidates[-1]
