"""Preference objectives as pure functions of per-image likelihoods; each returns one loss per row.

A denoiser has no cheap likelihood, so all of them put the denoising error in its place,
log pi(x) ~ -MSE(prediction, target) / T (Diffusion-DPO, arXiv:2311.12908). What the target is
(noise, v, or the flow's velocity) makes no difference here. Errors of policy and reference must be
at the same noise and timestep; so must those of a winner and its loser.

Half-precision arguments are computed in float32; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.core.errors import TuneError
from steer.rewards.thresholds.threshold import Threshold


Units = Literal["raw", "spread"]
CSFT_MARK = "Weird image. "
"""Put before the prompts of rejected images (Wu et al., arXiv:2303.14420)."""


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per row: (B, *latent) and (B, *latent) to (B,).

    Raises:
        TuneError: The shapes differ.
    """
    if prediction.shape != target.shape:
        raise TuneError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)}: must be equal"
        )
    return (_wide(prediction) - _wide(target)).square().flatten(1).mean(1)


def log_likelihood(prediction: Tensor, target: Tensor, temperature: float = 1e-3) -> Tensor:
    """-MSE / T per row, for epsilon, v, x0 and flow targets alike (TGO, arXiv:2605.04653).

    Args:
        prediction, target: (B, *latent).
        temperature: T, in units of the error; TGO's is 0.001, Diffusion-DPO's beta has T = 1.

    Returns:
        (B,), at most 0.

    Raises:
        TuneError: The shapes differ, or `temperature` is not positive.
    """
    if not temperature > 0:
        raise TuneError(f"temperature={temperature!r}: must be positive, such as 0.001")
    return -squared_error(prediction, target) / temperature


def masked_log_likelihood(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean log-probability of the masked tokens: the likelihood of masked generative models.

    (1 / |M|) sum over i in M of log softmax(logits_i)[tokens_i], as TGO takes it for MaskGIT-like
    models (Amused, Meissonic).

    Args:
        logits: (B, V, *grid): the vocabulary in dimension 1, as `UVit2DModel` answers.
        tokens: (B, *grid), integer: the image's own codes.
        mask: (B, *grid), bool: which were masked in the model's input.

    Returns:
        (B,), at most 0.

    Raises:
        TuneError: The shapes do not fit, or a row has no masked token.
    """
    if logits.shape[:1] + logits.shape[2:] != tokens.shape or mask.shape != tokens.shape:
        raise TuneError(
            f"logits {tuple(logits.shape)}, tokens {tuple(tokens.shape)}, mask "
            f"{tuple(mask.shape)}: must be (B, V, *grid), (B, *grid) and (B, *grid)"
        )
    if not bool(mask.flatten(1).any(1).all()):
        raise TuneError("mask: a row without a masked token has no likelihood; mask at least one")
    return -mean_over(F.cross_entropy(_wide(logits), tokens.long(), reduction="none"), mask)


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of (B, *grid) values where the mask is, (B,); NaN of a row where it is nowhere."""
    return torch.where(mask, values, 0).flatten(1).sum(1) / mask.flatten(1).sum(1)


def implicit_reward(policy: Tensor, reference: Tensor, beta: float = 1.0) -> Tensor:
    """r = beta (log pi - log pi_ref): (B,) and (B,) to (B,).

    The reward whose KL-regularised optimum the policy would be, up to a term of the prompt alone
    (DPO, arXiv:2305.18290).

    Raises:
        TuneError: `beta` is not positive.
    """
    if not beta > 0:
        raise TuneError(f"beta={beta!r}: must be positive")
    return beta * (_wide(policy) - _wide(reference))


def tgo_targets(
    scores: Tensor,
    threshold: Threshold,
    prompts: Sequence[str] | None = None,
    c: float = 5.0,
    units: Units = "raw",
) -> tuple[Tensor, Tensor]:
    """Labels 1[s >= tau] and weights 1 + c |s - tau| of threshold-guided optimisation.

    Args:
        scores: (B,) rewards.
        threshold: Its tau; with levels per prompt, each prompt's own tau(x). (The paper has one
            tau for all; levels per prompt are an extension, and closer to its own derivation,
            where tau*(x) = beta log Z(x).)
        prompts: Of each score; needed for levels per prompt.
        c: Confidence; 0 weighs all alike.
        units: The distance in the reward's own units (`"raw"`, the paper) or in the threshold's
            spreads (`"spread"`, so that one c means the same for every reward).

    Returns:
        Labels (B,), 0 or 1, and weights (B,), at least 1; float32.

    Raises:
        TuneError: A negative `c`, or unknown `units`.
        ThresholdError: A prompt without a level, or no spread where units ask for one.
    """
    if not c >= 0:
        raise TuneError(f"c={c!r}: must be a number of at least 0, such as 5")
    if units not in ("raw", "spread"):
        raise TuneError(f"units={units!r}: must be 'raw' or 'spread'")
    labels = threshold.label(scores, prompts)
    if units == "spread":
        return labels, threshold.confidence(scores, prompts, c=c)
    return labels, (1 + c * threshold.margin(scores, prompts).abs()).float()


def tgo(reward: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Threshold-guided optimisation: -w [l log sigma(r) + (1 - l) log(1 - sigma(r))].

    Binary cross-entropy of the implicit reward against 1[s >= tau] (arXiv:2605.04653): no pairs
    are needed. dL/dr = w (sigma(r) - l).

    Args:
        reward: (B,) implicit rewards; the paper's are beta = 1 at T = 0.001.
        labels: (B,), 0 or 1.
        weights: (B,); None is 1.

    Returns:
        (B,); log 2 times the weight where policy = reference.
    """
    reward = _wide(reward)
    loss = F.binary_cross_entropy_with_logits(reward, labels.to(reward), reduction="none")
    return loss if weights is None else loss * weights.to(reward)


def poly_dpo(logit: Tensor, alpha: float = 0.0) -> Tensor:
    """Poly-DPO: -log p + alpha (1 - p) with p = sigma(r_winner - r_loser) (arXiv:2604.24953).

    dL/dlogit = -(1 - p)(1 + alpha p). alpha = 0 is Diffusion-DPO exactly. alpha > 1 moves the
    largest gradient from p = 0 to p = (alpha - 1) / (2 alpha): pairs that contradict what was
    learned count less, which is meant for noisy preferences. -1 <= alpha < 0 dampens pairs that
    are already won (easy losers).

    Args:
        logit: (B,), the winner's implicit reward minus the loser's.
        alpha: At least -1.

    Returns:
        (B,); log 2 + alpha / 2 where policy = reference.

    Raises:
        TuneError: `alpha` below -1, where the gradient changes sign at p > -1 / alpha.
    """
    if not alpha >= -1:
        raise TuneError(
            f"alpha={alpha!r}: must be at least -1; below, pairs won with p > -1/alpha would be "
            "pushed back. Use 0 for clean preferences, about 8 for noisy ones"
        )
    logit = _wide(logit)
    loss = -F.logsigmoid(logit)
    return loss + alpha * torch.sigmoid(-logit) if alpha else loss


def kto_baseline(reward: Tensor) -> Tensor:
    """max(0, mean r), without gradient: the batch's estimate of the KL to the reference; ()."""
    return _wide(reward).detach().mean().clamp(min=0)


def diffusion_kto(
    reward: Tensor,
    labels: Tensor,
    baseline: Tensor | float | None = None,
    positive: float = 1.0,
    negative: float = 1.0,
) -> Tensor:
    """Diffusion-KTO: w (1 - sigma(y (r - Q))), y = 2 l - 1 (arXiv:2404.04465, sigmoid utility).

    Both tails are flat: what is already well above (or hopelessly below) the baseline no longer
    pulls. dL/dr = -w y sigma'(y (r - Q)).

    Args:
        reward: (B,) implicit rewards.
        labels: (B,), 0 or 1.
        baseline: Q; default `kto_baseline(reward)`.
        positive, negative: w of the two labels.

    Returns:
        (B,); w / 2 where policy = reference.

    Raises:
        TuneError: A negative weight.
    """
    if not (positive >= 0 and negative >= 0):
        raise TuneError(f"positive={positive!r}, negative={negative!r}: must not be negative")
    reward = _wide(reward)
    labels = labels.to(reward)
    shifted = reward - (kto_baseline(reward) if baseline is None else baseline)
    weights = positive * labels + negative * (1 - labels)
    return weights * torch.sigmoid((1 - 2 * labels) * shifted)


def sft(prediction: Tensor, target: Tensor) -> Tensor:
    """Supervised fine-tuning: the denoising error itself, to be used on accepted images; (B,)."""
    return squared_error(prediction, target)


def csft(prediction: Tensor, target: Tensor) -> Tensor:
    """Conditional supervised fine-tuning: the denoising error of all images; (B,).

    The label is in the condition: rejected images are predicted from their `csft_prompts`, and
    sampling then puts the mark into the negative prompt (arXiv:2303.14420).
    """
    return squared_error(prediction, target)


def csft_prompts(
    prompts: Sequence[str], labels: Sequence[float] | Tensor, mark: str = CSFT_MARK
) -> list[str]:
    """The prompts, with `mark` before those whose label is 0."""
    return [
        text if label >= 0.5 else f"{mark}{text}"
        for text, label in zip(prompts, labels, strict=True)
    ]


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
