"""Further losses of pairs as pure functions: bounded, noise-aware, guarded, reference-free.

Logits are a winner's implicit reward minus the loser's, errors mean squared errors per row; all are
(B,).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.core.errors import TuneError
from steer.core.types import wide


def dmpo(logit: Tensor, alpha: float = 0.01) -> Tensor:
    """p log(p / q) + (1 - p) log((1 - p) / (1 - q)) with p = sigma(logit), q = 1 - alpha.

    The loss called DMPO in the code of Diffusion-SDPO (arXiv:2511.03317). dL/dlogit =
    p (1 - p) (logit - log((1 - alpha) / alpha)): pairs have a target margin (4.6 at 0.01), and
    hopeless ones pull as little as those that are won.

    Args:
        logit: (B,).
        alpha: In (0, 0.5): the share of pairs that may stay wrong.

    Returns:
        (B,), at least 0.

    Raises:
        TuneError: `alpha` is outside.
    """
    if not 0 < alpha < 0.5:
        raise TuneError(f"alpha={alpha!r}: must be between 0 and 0.5, such as 0.01")
    logit = wide(logit)
    p, won, lost = logit.sigmoid(), F.logsigmoid(logit), F.logsigmoid(-logit)
    return p * (won - math.log1p(-alpha)) + (1 - p) * (lost - math.log(alpha))


def robust_dpo(logit: Tensor, flips: float = 0.1) -> Tensor:
    """Robust DPO: ((1 - e) L(m) - e L(-m)) / (1 - 2 e) with L = -log sigma (arXiv:2403.00409).

    Its mean over labels that are flipped with probability e is DPO's loss of the true ones.

    Args:
        logit: (B,).
        flips: e, in [0, 0.5); 0 is DPO.

    Returns:
        (B,), which may be negative.

    Raises:
        TuneError: `flips` is outside.
    """
    if not 0 <= flips < 0.5:
        raise TuneError(f"flips={flips!r}: must be in [0, 0.5), such as 0.1")
    logit = wide(logit)
    true, flipped = -F.logsigmoid(logit), -F.logsigmoid(-logit)
    return ((1 - flips) * true - flips * flipped) / (1 - 2 * flips)


def soft_dpo(logit: Tensor, share: float | Tensor) -> Tensor:
    """-(q log sigma(m) + (1 - q) log sigma(-m)): DPO of labels that are right with probability q.

    Its minimum is at sigma(m) = q, so no pair pulls without end. With one q for all, that is
    conservative DPO (Mitchell 2023).

    Args:
        logit: m, (B,).
        share: q, in [0, 1]: a number, or (B,), such as the share of annotators.

    Returns:
        (B,).

    Raises:
        TuneError: `share` is outside.
    """
    logit = wide(logit)
    q = torch.as_tensor(share, dtype=logit.dtype, device=logit.device)
    if not bool(((q >= 0) & (q <= 1)).all()):
        raise TuneError(f"share={share!r}: must be in [0, 1], such as 0.9")
    return -(q * F.logsigmoid(logit) + (1 - q) * F.logsigmoid(-logit))


def dpo_positive(winner: Tensor, loser: Tensor, weight: float = 5.0) -> Tensor:
    """DPO-Positive: -log sigma(r_w - r_l - k max(0, -r_w)) (arXiv:2402.13228).

    DPO wins a pair as well by lowering both images' likelihoods, the loser's more. Here a winner
    less likely than before tuning costs extra: k beta / 2 for every unit of error above the
    reference's.

    Args:
        winner, loser: Implicit rewards r_w, r_l, (B,).
        weight: k, at least 0; 0 is DPO. The paper has 5 to 500 for language models.

    Returns:
        (B,); log 2 where policy = reference.

    Raises:
        TuneError: `weight` is negative.
    """
    if not weight >= 0:
        raise TuneError(f"weight={weight!r}: must not be negative, such as 5")
    winner, loser = wide(winner), wide(loser)
    return -F.logsigmoid(winner - loser - weight * (-winner).relu())


def ipo(logit: Tensor) -> Tensor:
    """IPO, (m - 1/2)^2 (arXiv:2310.12036): a margin of 1/2 for every pair, and no more.

    The paper's (h - 1 / (2 beta))^2 with m = beta h, times beta^2.
    """
    return (wide(logit) - 0.5).square()


def smoothing(margin: Tensor, span: float, factor: float = 10.0) -> Tensor:
    """SmPO's factor of a pair's logit: k (2 p - 1), p = sigma(margin / span) (arXiv:2506.02698).

    p is the softmax of both scores, scaled to their span. Pairs that are nearly ties pull little.

    Args:
        margin: The winner's score minus the loser's, (B,).
        span: Largest minus smallest score; the paper's for PickScore is 0.282 - 0.115.
        factor: k.

    Returns:
        (B,), in (-k, k); 0 for ties.

    Raises:
        TuneError: `span` or `factor` is not positive.
    """
    if not (span > 0 and factor > 0):
        raise TuneError(f"span={span!r}, factor={factor!r}: must be positive")
    return factor * (2 * (wide(margin) / span).sigmoid() - 1)


def mapo(
    winner: Tensor, loser: Tensor, beta: float = 0.1, scale: float = 0.5, steps: float = 1000.0
) -> Tensor:
    """MaPO: E_w - beta log sigma(T (f(E_w) - f(E_l))) with f(E) = sE / (exp(sE) - 1).

    From arXiv:2406.06424. No reference is needed. It holds supervised fine-tuning on winners, so
    images that were sampled with guidance belong to a loss with guidance.

    Args:
        winner, loser: E_w, E_l, (B,), positive.
        beta: Weight of the margin.
        scale: s.
        steps: T, of the forward process.

    Returns:
        (B,).

    Raises:
        TuneError: A setting is not positive.
    """
    if not (beta > 0 and scale > 0 and steps > 0):
        raise TuneError(f"beta={beta!r}, scale={scale!r}, steps={steps!r}: must be positive")
    winner, loser = wide(winner), wide(loser)
    margin = _odds(scale * winner) - _odds(scale * loser)
    return winner - beta * F.logsigmoid(steps * margin)


def guarded_loser(winner: Tensor, loser: Tensor, product: Tensor, guard: float = 0.9) -> Tensor:
    """The loser's error, with a gradient that does not push the winner's up (arXiv:2511.03317).

    The gradient is multiplied by clip((1 - guard) E_w / <e_w, e_l>, 0, 1) where the product is
    positive, and left where it is not. To first order a step then lowers E_w at least by `guard` of
    what it would without the loser. (Taken row by row, and for equal Jacobians of both rows.)

    Args:
        winner, loser: E_w, E_l, (B,).
        product: <e_w, e_l> / D, the mean product of both prediction errors, (B,).
        guard: In [0, 1]; the paper has 0.9 for SD 1.5 and 0.6 for SDXL.

    Returns:
        (B,), with the values of `loser`.

    Raises:
        TuneError: `guard` is outside.
    """
    if not 0 <= guard <= 1:
        raise TuneError(f"guard={guard!r}: must be in [0, 1], such as 0.9")
    both = wide(product).detach()
    bound = ((1 - guard) * wide(winner).detach() / both.clamp(min=1e-12)).clamp(0, 1)
    factor = torch.where(both > 0, bound, torch.ones_like(bound))
    still = loser.detach()
    return still + factor * (loser - still)


def _odds(x: Tensor) -> Tensor:
    """x / (exp(x) - 1); 1 at 0."""
    small = x.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(x), x)
    return torch.where(small, 1 - x / 2, safe / torch.expm1(safe))
