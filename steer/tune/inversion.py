"""The noise that a model itself would make an image from: inversion, for preference losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from steer.core.ddim import ddim
from steer.core.errors import TuneError
from steer.core.types import Step
from steer.tune.backprop import Denoise


@torch.no_grad()
def inverted_noise(clean: Tensor, grid: Sequence[Step], denoise: Denoise) -> tuple[Tensor, Tensor]:
    """DDIM backwards from a clean sample, and the noise it then holds (InPO, arXiv:2503.18454).

    Where losses draw noise at random, an image's error holds the noise's own variance. InPO and
    SmPO (arXiv:2506.02698) take the policy's inversion instead: x_t from it, and (x_t - alpha x0) /
    sigma as the noise of the target. Winner and loser then have noises of their own.

    Args:
        clean: x0, `(B, *latent)`.
        grid: Levels from the least noise to the most, as steps whose `alpha`, `sigma` rise in
            noise; the last is the level wanted. Ten or fewer will do, in the papers.
        denoise: The policy, without guidance; it is asked at every level but the last.

    Returns:
        x_t and the noise, `(B, *latent)` each.

    Raises:
        TuneError: Fewer than two levels, a first one without noise, or levels that fall.
    """
    ratios = [step.sigma / max(step.alpha, 1e-12) for step in grid]
    if len(grid) < 2 or ratios != sorted(ratios) or ratios[0] == 0:
        raise TuneError(
            f"grid: {len(grid)} level(s) of sigma / alpha {[round(r, 3) for r in ratios]}: give at "
            "least two above 0, from the least noise to the most"
        )
    first, last = grid[0], grid[-1]
    x = first.alpha * clean  # as if no noise were left there
    for here, there in pairwise(grid):
        up = replace(here, alpha_next=there.alpha, sigma_next=there.sigma)
        x = ddim(up, x, up.x0(x, denoise(x, up))).mean
    return x, last.noise(x, clean)
