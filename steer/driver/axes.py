"""The order of axes in which a pipeline's loop keeps the latents that it drew."""

from __future__ import annotations

from itertools import permutations
from typing import Any

from torch import Tensor


_MOST = 0.5  # of the numbers; the rest may be frames of a given video


def in_loop_order(drawn: Tensor, plain: Any, lane: Tensor) -> Tensor:
    """Latents as drawn, with their axes permuted as the pipeline permutes its own.

    The order is found by the values: AnyFlow draws `(B, C, f, h, w)` and steps `(B, f, C, h, w)`.
    Unchanged where no order is found.

    Args:
        drawn: Further latents, drawn like the plain call's.
        plain: What the plain call drew: latents, or a tuple that begins with them.
        lane: What the loop steps first, the same row in front.
    """
    latents = plain[0] if isinstance(plain, tuple) else plain
    if not isinstance(latents, Tensor) or not latents.ndim == lane.ndim == drawn.ndim:
        return drawn
    row, other = latents[:1].to(lane), lane[:1]
    for axes in permutations(range(1, lane.ndim)):
        moved = row.permute(0, *axes)
        if moved.shape == other.shape and float((moved == other).float().mean()) > _MOST:
            return drawn.permute(0, *axes)
    return drawn
