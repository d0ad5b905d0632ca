"""What the iterations of noise optimisation cost."""

from __future__ import annotations

from typing import Protocol

from steer.core.costs import Work
from steer.methods.noise.ascent import ZeroOrder


_RETAINED = 4  # steps whose graphs are held together unless told otherwise


class Short(Protocol):
    """A short run that is differentiated."""

    @property
    def through(self) -> int | None: ...
    @property
    def checkpoint(self) -> bool | None: ...


class Plan(Short, Protocol):
    """What the cost depends on; as the arguments of `NoiseOptimization`."""

    @property
    def iterations(self) -> int: ...
    @property
    def starts(self) -> int: ...
    @property
    def gradient(self) -> str | ZeroOrder: ...
    @property
    def finish(self) -> str: ...
    @property
    def keep_start(self) -> bool: ...
    @property
    def monitor(self) -> object: ...
    @property
    def leash(self) -> float | None: ...


def probes(plan: Plan) -> ZeroOrder:
    """Where a gradient from rewards alone asks."""
    return plan.gradient if isinstance(plan.gradient, ZeroOrder) else ZeroOrder()


def points(plan: Short, steps: int) -> int:
    """Steps of a short run, of a grid of `steps`."""
    return steps if plan.through is None else min(plan.through, steps)


def recomputes(plan: Short, count: int) -> bool:
    """Whether a short run of `count` steps is asked again on the way back."""
    return count > _RETAINED if plan.checkpoint is None else plan.checkpoint


def exact_pass(plan: Short, steps: int) -> Work:
    """A short run with its exact gradient."""
    count = points(plan, steps)
    again = count - 1 if recomputes(plan, count) else 0
    return Work(count + again, count, previews=1, scores=1, gradients=1)


def one_pass(plan: Plan, steps: int) -> Work:
    """One iteration with its gradient."""
    count, watched = points(plan, steps), 0 if plan.monitor is None else 1
    exact = exact_pass(plan, steps) + Work(previews=watched, scores=watched)
    pairs = 2 * probes(plan).directions
    sampled = Work(pairs * count, previews=pairs + watched, scores=pairs + watched)
    if plan.gradient == "auto":
        return exact if exact.equivalent_rows >= sampled.equivalent_rows else sampled
    return exact if plan.gradient == "exact" else sampled


def last_pass(plan: Plan, steps: int) -> Work:
    """The last iteration, which needs no gradient."""
    looks = 1 if plan.monitor is None else 2
    return Work(points(plan, steps), previews=looks, scores=looks)


def around(plan: Plan, steps: int) -> Work:
    """The start's own image (or the pipeline's first call, for nothing), and the last one."""
    first = steps if plan.keep_start else 1
    full, short = plan.finish != "short", plan.finish != "full"
    finished = bool(plan.keep_start) + full + short
    return Work(first + full * steps, decodes=finished, scores=finished)


def total(plan: Plan, steps: int) -> Work:
    """All of it, per returned image."""
    passes = one_pass(plan, steps) * (plan.iterations - 1) + last_pass(plan, steps)
    if plan.leash is not None:
        passes += Work(points(plan, steps))
    return (passes + around(plan, steps)) * plan.starts + Work(decodes=1)
