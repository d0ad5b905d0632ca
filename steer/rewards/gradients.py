"""Scores whose gradient with respect to the images is bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from steer.core.rows import per_row


def score_with_clipped_gradient(
    score: Callable[[Tensor], Tensor], images: Tensor, limit: float
) -> Tensor:
    """`score(images)` with each image's gradient clipped to norm `limit`.

    The gradient is taken at once and the reward's graph let go, so that of several rewards only
    one graph is held at a time. The bound holds for the gradient of the score itself, whatever
    scales the score later (a weight, a mean, a loss scale). Without a gradient to keep, this is
    the plain call. Second derivatives are refused. CARINOX (arXiv:2509.17458) bounds each reward's
    gradient in the same place, before its sum with the others.

    Args:
        score: Images to `(B,)` float32 scores.
        images: Float `(B, 3, H, W)` in [0, 1].
        limit: Largest norm, above 0.

    Returns:
        `(B,)` float32 scores, those of the plain call.
    """
    if not (torch.is_grad_enabled() and images.requires_grad):
        return score(images)
    leaf = images.detach().requires_grad_()
    scores = score(leaf)
    if not scores.requires_grad:
        return scores
    (slope,) = torch.autograd.grad(scores.sum(), leaf)
    return _GivenGradient.apply(images, scores.detach(), clip_rows(slope, limit))


def clip_rows(gradient: Tensor, limit: float) -> Tensor:
    """Every row of `(B, ...)` scaled down to norm `limit` where it is longer."""
    norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    factors = (limit / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
    return gradient * per_row(factors, gradient)


class _GivenGradient(torch.autograd.Function):
    """Scores with a gradient that was computed before."""

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
        return per_row(upstream[0].to(slope.dtype), slope) * slope, None, None
