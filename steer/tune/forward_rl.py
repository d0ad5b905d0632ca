"""Reinforcement learning on the forward process: losses of denoising errors and advantages.

No trajectory is needed and no sampler is prescribed, only clean samples and how good they are. E is
the mean squared error of a prediction v (of noise, v, x0 or velocity, whatever the denoiser
predicts), E_old that of the policy that drew the samples, at the same noise and timestep, and S the
mean squared difference of the two predictions. All are (B,), and so is the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steer.core.errors import TuneError
from steer.core.types import wide


def nft(error: Tensor, old: Tensor, change: Tensor, advantage: Tensor, beta: float = 1.0) -> Tensor:
    """DiffusionNFT: a (E - E_old - S) + beta S (arXiv:2509.16117).

    The paper's r E(beta v + (1 - beta) v_old) + (1 - r) E((1 + beta) v_old - beta v) is E_old plus
    beta times this, with a = 2 r - 1. It is quadratic in v, and where v is free its minimum is
    v_old - mean(a (v_old - target)) / beta. Any real a will do: with a = W - 1 of best-of-n's
    weights and beta = 1 that is best-of-n's own prediction. The paper measures errors in x0,
    normalised by their size; here they are those of the prediction.

    Args:
        error, old, change: E, E_old, S.
        advantage: a, (B,); the mean over a prompt's samples should be 0.
        beta: The smaller, the further the optimum is from the old policy.

    Returns:
        (B,); 0 where policy = old.

    Raises:
        TuneError: `beta` is not positive.
    """
    if not beta > 0:
        raise TuneError(f"beta={beta!r}: must be positive, such as 1")
    error, old, change = wide(error), wide(old), wide(change)
    return advantage.to(error) * (error - old - change) + beta * change


def awm(
    error: Tensor,
    old: Tensor,
    change: Tensor,
    advantage: Tensor,
    clip: float = 1.0,
    leash: float = 1.0,
) -> Tensor:
    """Advantage-weighted matching: max(-a p, -a clip(p, 1 +- clip)) + leash S (arXiv:2509.25050).

    p = exp(E_old - E) is the ratio of likelihoods. On-policy it is 1, and the gradient a grad E.

    Args:
        error, old, change: E, E_old, S.
        advantage: a, (B,).
        clip: How far the ratio may go before a row no longer pulls.
        leash: Weight of S; the paper's average policy is the old policy here.

    Returns:
        (B,); -a where policy = old.

    Raises:
        TuneError: `clip` is not positive, or `leash` negative.
    """
    if not clip > 0 or not leash >= 0:
        raise TuneError(
            f"clip={clip!r}, leash={leash!r}: clip must be positive, leash not negative"
        )
    error, old, change = wide(error), wide(old), wide(change)
    ratio, a = (old - error).exp(), advantage.to(error)
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(-a * ratio, -a * bounded) + leash * change


def reward_weighted(
    error: Tensor, change: Tensor, advantage: Tensor, tau: float = 5.0, leash: float = 1.0
) -> Tensor:
    """ORW-CFM-W2: exp(tau A) MSE + alpha S (arXiv:2502.06061).

    Better images weigh more, and the squared change of predictions bounds the Wasserstein distance
    from the model before tuning. Where the prediction is free, the minimum is
    (mean(w target) + alpha v_ref) / (mean(w) + alpha) with w = exp(tau A).

    Args:
        error: MSE, (B,).
        change: S, mean squared difference of the prediction from the reference's, (B,).
        advantage: A, (B,). The paper has rewards themselves; centred in their prompt, they differ
            by a factor of the prompt.
        tau: At least 0; 0 weighs all alike.
        leash: alpha, at least 0; at 0 the paper's runs collapse to single images.

    Returns:
        (B,), at least 0.

    Raises:
        TuneError: A negative setting.
    """
    if not (tau >= 0 and leash >= 0):
        raise TuneError(f"tau={tau!r}, leash={leash!r}: must not be negative")
    error, change = wide(error), wide(change)
    return (tau * advantage.to(error)).exp() * error + leash * change
