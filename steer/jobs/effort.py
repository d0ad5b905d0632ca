"""How large a method is that is written as a name alone."""

from __future__ import annotations

from typing import Any

from steer.driver.denoisers.blend import Blend, cost
from steer.jobs.sample_job import COMPUTE
from steer.methods.text import Written, parse_method


def calls_per_call(blend: Blend | None, steps: int) -> float:
    """Plain calls of the base that one call costs: 1, or what a blend evaluates."""
    return 1 if blend is None else cost(blend, steps)


def sized_method(method: Written, compute: float | None, steps: int, blend: Blend | None) -> Any:
    """The method that is written; a bare name takes its size from `compute`.

    Args:
        method: As `steer sample --method` takes it.
        compute: Plain calls of the base; None is 4. Where a blend evaluates two denoisers per row
            it pays for half as many calls, but for one at least.
        steps: Denoising steps.
        blend: How tuned and untuned denoisers combine.

    Raises:
        ValueError: An unknown method, or arguments that do not fit.
    """
    paid = (compute or COMPUTE) / calls_per_call(blend, steps)
    return parse_method(method, max(paid, 1.0), steps)
