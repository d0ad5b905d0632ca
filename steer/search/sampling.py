"""Sampling a population to the end, lane by lane."""

from __future__ import annotations

from steer.core.types import Population
from steer.search.context import Context
from steer.search.short_runs import Asking


def sample_all(ctx: Context, population: Population) -> Asking[Population]:
    """All rows through the pipeline's own solver, scored: a lane, all of its steps, the next."""
    finished = []
    for part in ctx.groups(population):
        done = yield from ctx.sample(part)
        ctx.evaluate(done)
        finished.append(done)
    return Population.join(finished)
