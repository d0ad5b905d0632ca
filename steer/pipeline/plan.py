"""What blends cost: `compute` counts plain calls of the base, and a blend asks several models."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from steer.core.costs import ROWS, Costs
from steer.driver.denoisers.blend import shown
from steer.methods.default import for_compute
from steer.search.method import Method


if TYPE_CHECKING:
    from steer.driver.denoisers.models import Models


def per_row(models: Models | None, steps: int) -> int:
    """Denoiser evaluations per row at the dearest step; 1 for the base alone."""
    return 1 if models is None else models.cost(steps)


def with_blend(costs: Costs, models: Models | None, steps: int) -> Costs:
    """The costs, a row of a blend as often as it asks denoisers."""
    each = per_row(models, steps)
    return replace(costs, row=costs.row * each, row_backward=costs.row_backward * each)


def affordable(
    compute: float,
    steps: int,
    models: Models | None = None,
    lane_width: int | None = None,
    costs: Costs = ROWS,
) -> Method:
    """The default method that spends at most `compute` plain calls of the base.

    Args:
        compute: See `steer.methods.default.for_compute`.
        steps: Denoiser calls of a plain call.
        models: A blend counts as often as it asks denoisers at its dearest step.
        lane_width, costs: See `for_compute`.

    Raises:
        ValueError: `compute` is out of range, or below one blended call.
    """
    each = per_row(models, steps)
    if models is not None and each > 1 and math.isfinite(compute) and 1 <= compute < each:
        raise ValueError(
            f"compute={compute!r}: blend={shown(models.blend)} asks {each} denoisers per row, so "
            f"one blended call costs {each} plain calls: give compute={each} or more"
        )
    dearer = with_blend(costs, models, steps)
    plain = costs.plain(steps) / dearer.plain(steps)
    return for_compute(compute * plain, steps, lane_width=lane_width, costs=dearer)
