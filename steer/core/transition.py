"""The stochastic transition on any noise schedule: one number, rho, says how much noise stays.

A schedule is `x = alpha x0 + sigma noise`; the next point has alpha' and sigma'. With D the clean
prediction at x and e the noise that x then holds,

    x' = alpha' D + sigma' (rho e + sqrt(1 - rho^2) z),   z standard normal

has the right marginal distribution for every rho in [0, 1]: rho = 1 is the deterministic step,
rho = 0 draws all noise anew. Every published sampler of one denoiser call per step is a choice of
rho per step.
"""

from __future__ import annotations

import math

from torch import Tensor

from steer.core.types import Move, Step, wide


def transition(step: Step, x: Tensor, x0: Tensor, rho: float) -> Move:
    """One step that keeps a share `rho` of the noise and draws the rest anew.

    With D frozen over the step, the reverse SDE `dx = (drift) dt + g dw` that keeps the marginals
    is linear in the noise, and solves to this with `rho = exp(-1/2 int g^2 / sigma^2 dt)` (Song et
    al. 2021, arXiv:2011.13456, for the SDE). DDIM's eta is the special case of `ddim`. Finite also
    where alpha = 0 (pure noise) and where sigma' = 0 (the last step, which has no noise then).

    Args:
        step: The noise level of `x`, and the next one.
        x: Latents `(rows, *latent)`.
        x0: Clean prediction at `x`, same shape.
        rho: Correlation of the new noise with the old, in [0, 1].

    Returns:
        The move; its mean in the dtype of `x`, computed in float32 at least.

    Raises:
        ValueError: rho outside [0, 1].
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho={rho}: a correlation of the old noise with the new, from 0 to 1")
    return mixed(step, x, x0, rho, math.sqrt((1 - rho) * (1 + rho)))


def mixed(step: Step, x: Tensor, x0: Tensor, kept: float, fresh: float) -> Move:
    """`transition` with both weights given: `kept^2 + fresh^2 = 1`."""
    noise = step.noise(wide(x), wide(x0))
    mean = step.alpha_next * wide(x0) + (step.sigma_next * kept) * noise
    return Move(mean.to(x.dtype), step.sigma_next * fresh, x0)


def renoise(x: Tensor, here: tuple[float, float], there: tuple[float, float]) -> Move:
    """Back up to a noisier level, by adding noise: the forward process between two levels.

    x' = (alpha' / alpha) x + sqrt(sigma'^2 - sigma^2 (alpha' / alpha)^2) z: what is a sample at
    `here` is then one at `there` (Restart sampling, Xu et al. 2023, arXiv:2306.14878).

    Args:
        x: Latents `(rows, *latent)` at `here`.
        here, there: alpha and sigma of the two levels.

    Returns:
        The move; its `x0` is not known, and is `x`.

    Raises:
        ValueError: `there` is cleaner than `here`, or `here` is pure noise and `there` is not.
    """
    (alpha, sigma), (alpha_next, sigma_next) = here, there
    if alpha == 0:
        if alpha_next:
            raise ValueError(f"here={here}, there={there}: pure noise leads to no cleaner level")
        return Move(x, 0.0, x)
    scale = alpha_next / alpha
    variance = sigma_next**2 - (sigma * scale) ** 2
    if variance < -1e-6 * max(sigma_next, sigma) ** 2:
        raise ValueError(f"here={here}, there={there}: adding noise leads to noisier levels only")
    return Move((wide(x) * scale).to(x.dtype), math.sqrt(max(0.0, variance)), x)
