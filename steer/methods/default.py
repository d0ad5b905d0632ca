"""Which method a bare `compute=` stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steer.core.checks import finite, whole
from steer.core.costs import ROWS, Costs, check_costs
from steer.methods.selection.best_of_n import BestOfN
from steer.methods.selection.prune import Prune
from steer.search.method import Method


_PRUNED, _DRAFTED = 8, 12  # steps from which on there is something to prune, or to stride over
_SHORTENED, _SHORT = 4, 3  # and, where all noise is drawn anew, to leave out: three are drawn
_FLOW = 0.4  # of a flow's steps: nearly as good an image (benchmarks/few_steps.py)
_GUIDED = 1.25  # and calls per unit of guidance (benchmarks/guidance_drafts.py)


@dataclass(frozen=True)
class Sampling:
    """What a plan has to know of how a call samples.

    Attributes:
        drafts, guidance, renoises, flow: As for `for_compute`.
    """

    drafts: bool = False
    guidance: float = 1.0
    renoises: bool = False
    flow: bool = False

    def strides(self, steps: int) -> int | None:
        """Denoiser calls of a short run to the end, where such are planned; else `None`.

        Of a flow the more the stronger its guidance, which makes its ways steeper (as for drafts,
        `Prune.for_compute`).
        """
        if self.drafts and self.flow and steps >= _DRAFTED:
            scale = finite("guidance", self.guidance, "7.5")
            strides = max(math.ceil(_FLOW * steps - 1e-9), math.ceil(_GUIDED * scale))
            return strides if strides < steps else None
        if self.drafts and self.renoises and _SHORTENED <= steps < _DRAFTED:
            return _SHORT
        return None


EVERY_STEP, FEWER_STEPS = Sampling(), Sampling(drafts=True)


def for_compute(
    compute: float,
    steps: int,
    *,
    lane_width: int | None = None,
    costs: Costs = ROWS,
    drafts: bool = False,
    guidance: float = 1.0,
    renoises: bool = False,
    flow: bool = False,
) -> Method:
    """The default method that spends at most `compute` plain calls of `steps` steps.

    Drafts that are pruned, where there are steps enough for them; else pruning, or best of n. Of a
    flow model, and where few steps draw all noise anew, best of n short runs
    (benchmarks/few_steps.py).

    Args:
        compute: Multiples of what a plain call costs, its decode included, at least 1.
        steps: Denoiser calls of a plain call.
        lane_width: That the pipeline's batch has already; the populations are then multiples of
            it, so that no row is padding.
        costs: What a row, a decode, a score cost; by default rows alone count.
        drafts: Whether candidates can take fewer steps than the call: its solver can begin in the
            middle of the schedule, for drafts, or the schedule ends in clean data, for short runs.
        guidance: The call's scale of classifier-free guidance, 1 for none: drafts and short runs
            take shorter strides where it is strong.
        renoises: Whether the call's scheduler draws all noise anew at every step, as those of
            consistency models do (`LCMScheduler`): each of its predictions is made to be an end.
        flow: Whether the call's model is a flow (SD3, Flux, Qwen-Image, Wan).

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
    short = Sampling(drafts, guidance, renoises, flow).strides(steps) if compute > 1 else None
    if drafts and compute > 1 and steps >= _DRAFTED and short is None:
        plans.append(Prune.for_compute(compute, steps, costs, drafts=True, guidance=guidance))
    if compute >= 2 and steps >= _PRUNED and short is None:
        plans.append(Prune.for_compute(compute, steps, costs))
    for plan in plans:
        aligned = all(size % lane == 0 for size in plan.populations)
        if aligned and costs.fits(plan.work(steps), compute, steps):
            return plan
    most = costs.most(lambda n: BestOfN(n * lane, short).work(steps), compute, steps)
    return BestOfN(most * lane, short if most * lane > 1 else None)
