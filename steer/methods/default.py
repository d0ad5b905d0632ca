"""Which method a bare `compute=` stands for."""

from __future__ import annotations

import math

from steer.core.checks import whole
from steer.core.costs import ROWS, Costs, check_costs
from steer.methods.selection.best_of_n import BestOfN
from steer.methods.selection.prune import Prune
from steer.search.method import Method


_PRUNED, _DRAFTED = 8, 12  # steps from which on there is something to prune, or to stride over
_SHORTENED, _SHORT = 4, 3  # and, where all noise is drawn anew, to leave out: three are drawn


def for_compute(
    compute: float,
    steps: int,
    *,
    lane_width: int | None = None,
    costs: Costs = ROWS,
    drafts: bool = False,
    guidance: float = 1.0,
    renoises: bool = False,
) -> Method:
    """The default method that spends at most `compute` plain calls of `steps` steps.

    Drafts that are pruned, where there are steps enough for them; else pruning, or best of n. Where
    few steps draw all noise anew, best of n short runs (benchmarks/few_steps.py).

    Args:
        compute: Multiples of what a plain call costs, its decode included, at least 1.
        steps: Denoiser calls of a plain call.
        lane_width: That the pipeline's batch has already; the populations are then multiples of
            it, so that no row is padding.
        costs: What a row, a decode, a score cost; by default rows alone count.
        drafts: Whether the call's solver can begin in the middle of the schedule.
        guidance: The call's scale of classifier-free guidance, 1 for none: drafts take shorter
            strides where it is strong.
        renoises: Whether the call's scheduler draws all noise anew at every step, as those of
            consistency models do (`LCMScheduler`): each of its predictions is made to be an end.

    Raises:
        ValueError: `compute` below 1, or below `lane_width`, whose lane alone costs more.
    """
    if isinstance(compute, bool) or not isinstance(compute, int | float) or not compute >= 1:
        raise ValueError(f"compute={compute!r}: a plain call costs 1; give 1 or more, such as 4")
    if not math.isfinite(compute):
        raise ValueError(f"compute={compute!r}: must be finite; give for example 16")
    whole("steps", steps, "steps=20")
    check_costs(costs)
    lane = lane_width or 1
    if compute < lane:
        raise ValueError(
            f"lane_width={lane_width} with compute={compute!r}: one lane costs {lane_width} plain "
            "calls; lower lane_width or raise compute"
        )
    plans: list[Prune] = []
    short = renoises and drafts and compute > 1 and _SHORTENED <= steps < _DRAFTED
    if drafts and compute > 1 and steps >= _DRAFTED:
        plans.append(Prune.for_compute(compute, steps, costs, drafts=True, guidance=guidance))
    if compute >= 2 and steps >= _PRUNED and not short:
        plans.append(Prune.for_compute(compute, steps, costs))
    for plan in plans:
        aligned = all(size % lane == 0 for size in plan.populations)
        if aligned and costs.fits(plan.work(steps), compute, steps):
            return plan
    strides = _SHORT if short else None
    most = costs.most(lambda n: BestOfN(n * lane, strides).work(steps), compute, steps)
    return BestOfN(most * lane, strides if most * lane > 1 else None)
