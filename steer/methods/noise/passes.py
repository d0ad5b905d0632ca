"""What the iterations of noise optimisation cost, in denoiser-row equivalents."""

from __future__ import annotations

import math
from typing import Protocol

from steer.core.checks import positive
from steer.methods.noise.ascent import ZeroOrder


_RETAINED = 4  # steps whose graphs are held together unless told otherwise


class Plan(Protocol):
    """What the cost depends on; as the arguments of `NoiseOptimization`."""

    @property
    def iterations(self) -> int: ...
    @property
    def through(self) -> int | None: ...
    @property
    def starts(self) -> int: ...
    @property
    def gradient(self) -> str | ZeroOrder: ...
    @property
    def finish(self) -> str: ...
    @property
    def keep_start(self) -> bool: ...
    @property
    def checkpoint(self) -> bool | None: ...


def probes(plan: Plan) -> ZeroOrder:
    """Where a gradient from rewards alone asks."""
    return plan.gradient if isinstance(plan.gradient, ZeroOrder) else ZeroOrder()


def points(plan: Plan, steps: int) -> int:
    """Steps of a short run, of a grid of `steps`."""
    return steps if plan.through is None else min(plan.through, steps)


def recomputes(plan: Plan, count: int) -> bool:
    """Whether a short run of `count` steps is asked again on the way back."""
    return count > _RETAINED if plan.checkpoint is None else plan.checkpoint


def one_pass(plan: Plan, steps: int) -> int:
    """One iteration with its gradient; a row differentiated counts two more."""
    count = points(plan, steps)
    exact = count + 2 * count + (count - 1 if recomputes(plan, count) else 0)
    sampled = 2 * probes(plan).directions * count
    if plan.gradient == "exact":
        return exact
    return max(exact, sampled) if plan.gradient == "auto" else sampled


def around(plan: Plan, steps: int) -> int:
    """The start's own image (or the pipeline's first call, for nothing), and the last one."""
    first = steps if plan.keep_start else 1
    return first + (0 if plan.finish == "short" else steps)


def total(plan: Plan, steps: int) -> int:
    """All of it, per returned image; the last iteration needs no gradient."""
    passes = (plan.iterations - 1) * one_pass(plan, steps) + points(plan, steps)
    return plan.starts * (passes + around(plan, steps))


def iterations_for(plan: Plan, compute: float, steps: int, method: str) -> int:
    """The largest `iterations` with which `plan` costs at most `compute` plain calls.

    Raises:
        ValueError: Not even one iteration fits; the message says what it costs.
    """
    positive("compute", compute, none=False)
    rows = math.floor(compute * steps / plan.starts + 1e-9) - around(plan, steps)
    least = points(plan, steps)
    if rows < least:
        calls = plan.starts * (around(plan, steps) + least) / steps
        raise ValueError(
            f"compute={compute!r}: one iteration of {method} costs {calls:.3g} plain calls; raise "
            "compute"
        )
    return 1 + (rows - least) // one_pass(plan, steps)
