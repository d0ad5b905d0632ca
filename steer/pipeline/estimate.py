"""What a guided call will cost, before it is made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from steer.core.costs import ROWS, Costs, Work
from steer.pipeline.arguments import COMPUTE, check_effort, is_family
from steer.pipeline.plan import affordable, per_row
from steer.pipeline.preparing import Settings
from steer.search.method import Method


@dataclass(frozen=True)
class Estimate:
    """What a call with one prompt spends per returned image, at most.

    Attributes:
        method: What `compute` comes to.
        work: Its counts; rows once for every denoiser of a blend.
        costs: What one of each costs: in FLOPs, or in rows before the first call.
        steps: Denoiser calls of a plain call.
    """

    method: Method
    work: Work
    costs: Costs
    steps: int

    @property
    def calls(self) -> float:
        """In plain calls, decodes and scores included where costs are FLOPs."""
        return self.costs.calls(self.work, self.steps)


def estimate(
    given: Settings,
    steps: int,
    *,
    method: Method | type[Method] | None = None,
    compute: float | None = None,
) -> Estimate:
    """What `given(prompt, method=method, compute=compute, num_inference_steps=steps)` will cost.

    `compute` is planned with what the latest call of the guided pipeline has taught: what one of
    each costs, and whether the solver can begin in the middle. Before the first call rows alone
    count, and the plan may turn out another one.

    Args:
        given: A guided pipeline.
        steps: Denoiser calls of a plain call.
        method, compute: As for the call.

    Raises:
        ValueError: `compute` out of range, or beside a method that is no class.
    """
    check_effort(method, compute)
    if method is None and (compute is None or is_family(given.method)):
        method, compute = given.method, given.compute if compute is None else compute
    weights, models = given.weights, given.models
    if not isinstance(method, Method):
        wanted = COMPUTE if compute is None else compute
        costs = weights.costs if given.compute_unit == "flops" and wanted > 1 else ROWS
        how = (weights.lane, costs, weights.sampling, given.plans, method)
        method = affordable(wanted, steps, models, *how)
    work = method.work(steps)
    rows = work.rows * per_row(models, steps)
    return Estimate(method, replace(work, rows=rows), weights.costs, steps)
