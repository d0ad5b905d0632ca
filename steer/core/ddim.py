"""One DDIM step as a Gaussian, on any noise schedule that alpha and sigma describe."""

from __future__ import annotations

import math

from torch import Tensor

from steer.core.transition import mixed
from steer.core.types import Move, Step


def ddim(step: Step, x: Tensor, x0: Tensor, eta: float = 0.0) -> Move:
    """One DDIM step from `step` to its next point, given the clean prediction.

    Song et al. 2020 (arXiv:2010.02502), eq. 12 and 16, on any grid `x = alpha x0 + sigma noise`:
    with r = (alpha / sigma) / (alpha' / sigma'), the ratio of signal-to-noise,

        std = eta sigma' sqrt(1 - r^2)
        mean = alpha' x0 + sigma' sqrt(1 - eta^2 (1 - r^2)) noise(x, x0)

    so that the next latents have the right marginal distribution for every eta: `transition` with
    rho^2 = 1 - eta^2 (1 - r^2). `eta=0` is the
    deterministic step (Euler on VE and flow schedules), `eta=1` the DDPM posterior. Finite also
    where alpha = 0 (zero terminal SNR, flow at t = 1) and where sigma' = 0. With `eta=0` the next
    point may be noisier than this one (inversion).

    Args:
        step: The noise level of `x`, and the next one.
        x: Latents `(rows, *latent)`.
        x0: Clean prediction at `x`, same shape.
        eta: Share of fresh noise, in [0, 1].

    Returns:
        The move; its mean in the dtype of `x`, computed in float32 at least.

    Raises:
        ValueError: eta outside [0, 1], or above 0 on a step to a higher noise level.
    """
    kept, fresh = shares(step, eta)
    return mixed(step, x, x0, kept, fresh)


def shares(step: Step, eta: float) -> tuple[float, float]:
    """The weights of the old and of the fresh noise, rho and sqrt(1 - rho^2); see `ddim`.

    Raises:
        ValueError: As for `ddim`.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: must lie in [0, 1]")
    ratio = snr_ratio(step)
    if eta > 0 and ratio > 1 + 1e-6:
        raise ValueError(
            f"eta={eta} at step {step.index}: the step goes up in noise; use eta=0 there"
        )
    fresh = eta * math.sqrt(max(0.0, 1 - ratio * ratio))
    return math.sqrt(max(0.0, 1 - fresh * fresh)), fresh


def snr_ratio(step: Step) -> float:
    """(alpha / sigma) / (alpha' / sigma'), in [0, 1] for a denoising step.

    0 where the step comes from pure noise or leads to clean data.
    """
    if step.alpha == 0 or step.sigma_next == 0:
        return 0.0
    return (step.alpha * step.sigma_next) / max(step.alpha_next * step.sigma, 1e-30)
