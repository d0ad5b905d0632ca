"""Scores whose gradient with respect to the images is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from steer.core.types import Reward
from steer.rewards.base import as_scores


def limited(
    name: str, reward: Reward, images: Tensor, prompts: Sequence[str], limit: float
) -> Tensor:
    """`reward(images, prompts)` with each image's gradient clipped to norm `limit`.

    The gradient is taken at once and the reward's graph let go, so that of several rewards only
    one graph is held at a time. The bound holds for the gradient of the score itself, whatever
    scales the score later (a weight, a mean, a loss scale). Without a gradient to keep, this is
    the plain call. Second derivatives are refused. CARINOX (arXiv:2509.17458) bounds each reward's
    gradient in the same place, before its sum with the others.

    Args:
        name: How the reward is called in errors.
        images: Float `(B, 3, H, W)` in [0, 1].
        limit: Largest norm, above 0.

    Returns:
        `(B,)` float32 scores, those of the plain call.

    Raises:
        RewardError: Not one score per image.
    """
    if not (torch.is_grad_enabled() and images.requires_grad):
        return as_scores(name, reward(images, prompts), images)
    leaf = images.detach().requires_grad_()
    scores = as_scores(name, reward(leaf, prompts), leaf)
    if not scores.requires_grad:
        return scores
    (slope,) = torch.autograd.grad(scores.sum(), leaf)
    return _Sloped.apply(images, scores.detach(), clipped(slope, limit))


def clipped(gradient: Tensor, limit: float) -> Tensor:
    """Every row of `(B, ...)` scaled down to norm `limit` where it is longer."""
    norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    factors = (limit / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
    return gradient * factors.view(-1, *[1] * (gradient.ndim - 1))


class _Sloped(torch.autograd.Function):
    """Scores with a given gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, scores: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return scores.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        rows = upstream[0].to(slope.dtype).view(-1, *[1] * (slope.ndim - 1))
        return rows * slope, None, None
