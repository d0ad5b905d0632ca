"""Policy gradients along a sampling run: every step that draws noise is an action with a density.

A step draws x' = m + std z from N(m, std^2 I), with m a function of the prediction. Densities are
those of whole latents: log densities are sums over their D numbers. (The code of DDPO and Flow-GRPO
takes means over them, so its clip of 1e-4 is one of about 1e-4 D here.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from steer.core.errors import TuneError
from steer.core.types import wide


_FAR = 20.0  # where exp is cut off, long after any clip


def log_ratio(mean: Tensor, old: Tensor, noise: Tensor, std: float) -> Tensor:
    """log N(x'; m, std^2 I) - log N(x'; m_old, std^2 I) at x' = m_old + std z: <d, z> - |d|^2 / 2.

    d = (m - m_old) / std. No two large numbers are subtracted, so float32 is enough; and it is 0,
    not nearly so, where the means are equal.

    Args:
        mean, old: m and m_old, `(B, *latent)`.
        noise: z, likewise.
        std: Of the step, positive.

    Returns:
        `(B,)`.

    Raises:
        TuneError: `std` is not positive: a deterministic step has no density.
    """
    _check_std(std)
    away = ((wide(mean) - wide(old)) / std).flatten(1)
    return (away * wide(noise).flatten(1)).sum(1) - away.square().sum(1) / 2


def mean_divergence(mean: Tensor, other: Tensor, std: float) -> Tensor:
    """KL of two steps with one std: |m - m_ref|^2 / (2 std^2), summed over the latent; `(B,)`.

    Raises:
        TuneError: `std` is not positive.
    """
    _check_std(std)
    return ((wide(mean) - wide(other)) / std).flatten(1).square().sum(1) / 2


def clipped_policy(ratio: Tensor, advantage: Tensor, clip: float = 0.2) -> Tensor:
    """PPO's loss, max(-A p, -A clip(p, 1 +- clip)) with p = exp(ratio) (arXiv:1707.06347).

    DDPO's importance-sampled estimator (arXiv:2305.13301) and Flow-GRPO's (arXiv:2505.05470). With
    p = 1 its gradient is -A times that of the log density.

    Args:
        ratio: log p, `(B,)`; above 20 it counts as 20.
        advantage: A, `(B,)`.
        clip: How far p may go before a step no longer pulls.

    Returns:
        `(B,)`; -A where the policy is the old one.

    Raises:
        TuneError: `clip` is not positive.
    """
    if not clip > 0:
        raise TuneError(f"clip={clip!r}: must be positive, such as 0.2")
    p = wide(ratio).clamp(max=_FAR).exp()
    a = advantage.to(p)
    return torch.maximum(-a * p, -a * p.clamp(1 - clip, 1 + clip))


def _check_std(std: float) -> None:
    if not std > 0:
        raise TuneError(f"std={std!r}: a deterministic step has no density; draw noise in it")
