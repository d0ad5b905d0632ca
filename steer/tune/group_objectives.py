"""Losses of whole groups of a prompt's images, of steps and of soft labels, as pure functions.

They are for loops of one's own: the trainer gives its losses rows or pairs. `reward` is always the
implicit reward, beta (log pi - log pi_ref), of denoising errors (`steer.tune.objectives`) or of
steps (`steer.tune.policy_gradient.log_ratio`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.core.errors import TuneError
from steer.core.types import wide


def rank_dpo(reward: Tensor, scores: Tensor) -> Tensor:
    """RankDPO (arXiv:2410.18013): -sum of Delta_ij log sigma(r_i - r_j) over all i better than j.

    Delta_ij = |2^y_i - 2^y_j| |1 / log(1 + k_i) - 1 / log(1 + k_j)|, k the rank by score, 1 the
    best: what exchanging both would cost in discounted cumulative gain. All pairs of G images from
    G forward passes. With G = 2 it is DPO's loss times Delta.

    Args:
        reward: r, `(B, G)`.
        scores: y, `(B, G)`, scaled to [0, 1] or so; ties have no loss.

    Returns:
        `(B,)`.

    Raises:
        TuneError: The shapes differ.
    """
    _check_shapes(reward, scores)
    reward, y = wide(reward), scores.to(wide(reward))
    rank = (-y).argsort(dim=1, stable=True).argsort(dim=1).to(y) + 1
    gain, discount = 2**y, 1 / (1 + rank).log()
    delta = _between(gain).abs() * _between(discount).abs()
    better = _between(y) > 0
    return -(delta * F.logsigmoid(_between(reward)) * better).sum((1, 2))


def list_mle(reward: Tensor, scores: Tensor) -> Tensor:
    """-log of the Plackett-Luce probability of the scores' order: the ranking loss of dense rewards
    (arXiv:2402.08265).

    The best is drawn first with odds exp(r), then the best of the rest, and so on. With G = 2 it is
    DPO's loss.

    Args:
        reward: r, `(B, G)`.
        scores: `(B, G)`; ties are taken in their order.

    Returns:
        `(B,)`.

    Raises:
        TuneError: The shapes differ.
    """
    _check_shapes(reward, scores)
    reward = wide(reward)
    ordered = reward.gather(1, scores.argsort(dim=1, descending=True, stable=True))
    rest = ordered.flip(1).logcumsumexp(1).flip(1)
    return (rest - ordered).sum(1)


def early_steps(count: int, discount: float = 0.9) -> Tensor:
    """Odds of training a step, discount^k for step k, step 0 the noisiest (arXiv:2402.08265).

    Args:
        count: Steps of a run.
        discount: In (0, 1]; 1 is uniform.

    Returns:
        `(count,)`, adding up to 1.

    Raises:
        TuneError: `count` below 1, or `discount` outside.
    """
    if count < 1 or not 0 < discount <= 1:
        raise TuneError(f"count={count!r}, discount={discount!r}: at least 1 step, and (0, 1]")
    odds = discount ** torch.arange(count, dtype=torch.float64)
    return odds / odds.sum()


def centred_regression(reward: Tensor, scores: Tensor) -> Tensor:
    """The mean over a group of ((r_i - mean r) - (R_i - mean R))^2: CRD (arXiv:2603.14128).

    Implicit rewards are fitted to scores, and what a prompt's images share cancels from both. No
    image pulls once its reward is its score.

    Args:
        reward: r, `(B, G)`.
        scores: R, `(B, G)`, in the implicit reward's units.

    Returns:
        `(B,)`.

    Raises:
        TuneError: The shapes differ.
    """
    _check_shapes(reward, scores)
    reward, scores = wide(reward), scores.to(wide(reward))
    away = reward - scores
    return (away - away.mean(1, keepdim=True)).square().mean(1)


def step_dpo(winner: Tensor, loser: Tensor, beta: float = 10.0, clip: float = 0.1) -> Tensor:
    """SPO's loss of two steps from one point: -log sigma(beta (log p_w - log p_l)).

    From arXiv:2406.04314; with ratios p clipped to 1 +- clip, beyond which a step no longer pulls.
    D3PO (arXiv:2311.13231) has the same at beta = 0.1, PSO (arXiv:2410.03190) at 50.

    Args:
        winner, loser: log p of both steps, policy against reference, `(B,)`.
        beta: Positive.
        clip: In (0, 1).

    Returns:
        `(B,)`, never below -log sigma(beta log((1 + clip) / (1 - clip))).

    Raises:
        TuneError: `beta` or `clip` is outside.
    """
    if not beta > 0 or not 0 < clip < 1:
        raise TuneError(f"beta={beta!r}, clip={clip!r}: beta must be positive, clip in (0, 1)")
    won, lost = (wide(x).exp().clamp(1 - clip, 1 + clip).log() for x in (winner, loser))
    return -F.logsigmoid(beta * (won - lost))


def widest_steps(scores: Tensor, gap: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Which of several steps from one point are compared, as in SPO: the best and the worst.

    Args:
        scores: `(B, G)` of the points that the steps lead to.
        gap: Groups are kept where the softmax of their scores gives the best at least this much
            more than the worst; in [0, 1).

    Returns:
        Best and worst, `(B,)` indices, and which groups are kept, `(B,)` bool.

    Raises:
        TuneError: `gap` is outside.
    """
    if not 0 <= gap < 1:
        raise TuneError(f"gap={gap!r}: must be in [0, 1), such as 0.3")
    odds = wide(scores).softmax(1)
    best, worst = odds.argmax(1), odds.argmin(1)
    return best, worst, odds.amax(1) - odds.amin(1) > gap


def _between(x: Tensor) -> Tensor:
    """x_i - x_j, `(B, G, G)`."""
    return x[:, :, None] - x[:, None, :]


def _check_shapes(reward: Tensor, scores: Tensor) -> None:
    if reward.shape != scores.shape or reward.ndim != 2:
        raise TuneError(
            f"reward {tuple(reward.shape)} and scores {tuple(scores.shape)}: both must be (B, G), "
            "a row per prompt"
        )
