"""What blends cost: `compute` counts plain calls of the base, and a blend asks several models."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from steer.core.costs import ROWS, Costs
from steer.driver.denoisers.blend import shown
from steer.methods.default import EVERY_STEP, Sampling, for_compute
from steer.search.method import Method


if TYPE_CHECKING:
    from steer.driver.denoisers.models import Models
    from steer.pipeline.planning.plans import Plans


def per_row(models: Models | None, steps: int) -> int:
    """Denoiser evaluations per row at the dearest step; 1 for the base alone."""
    return 1 if models is None else models.cost(steps)


def affordable(
    compute: float,
    steps: int,
    models: Models | None = None,
    lane_width: int | None = None,
    costs: Costs = ROWS,
    sampling: Sampling = EVERY_STEP,
    plans: Plans | None = None,
    family: type[Method] | None = None,
) -> Method:
    """The method that spends at most `compute` plain calls of the base: `plans`' or the default.

    Args:
        compute: See `steer.methods.default.for_compute`.
        steps: Denoiser calls of a plain call.
        models: A blend counts as often as it asks denoisers at its dearest step.
        lane_width, costs: See `for_compute`.
        sampling: How the call samples.
        family: The method whose size is wanted, in place of the default one.
        plans: What was learnt from pilots, for calls of the guided pipeline as it is.

    Raises:
        ValueError: `compute` is out of range, or below one blended call.
    """
    each = per_row(models, steps)
    if models is not None and each > 1 and math.isfinite(compute) and 1 <= compute < each:
        raise ValueError(
            f"compute={compute!r}: blend={shown(models.blend)} asks {each} denoisers per row, so "
            f"one blended call costs {each} plain calls: give compute={each} or more"
        )
    dearer = costs.blended(each)
    plain = costs.plain(steps) / dearer.plain(steps)
    fair = compute * plain
    if family is not None:
        return family.for_compute(fair, steps, dearer)
    how = asdict(sampling)
    default = for_compute(fair, steps, lane_width=lane_width, costs=dearer, **how)
    if plans is None:
        return default
    return plans.at(fair, dearer, lane=lane_width or 1, drafts=sampling.drafts)
