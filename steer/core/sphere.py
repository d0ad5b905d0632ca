"""Moves of initial noise that keep its norm, row by row: geometry on spheres.

The norm of Gaussian noise of d numbers is within a fraction of about 1 / sqrt(2 d) of sqrt(d), and
a denoiser was trained on nothing else. So searches keep the noise on that sphere. Tensors are
`(rows, *latent)`; norms are taken in float32 at least.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steer.core.rows import per_row
from steer.core.types import wide


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products row by row, shaped to broadcast: `(rows, 1, ...)`."""
    products = (wide(a) * wide(b)).flatten(1).sum(1)
    return per_row(products, a)


def radius(x: Tensor) -> Tensor:
    """Norms row by row, shaped to broadcast: `(rows, 1, ...)`."""
    norms = torch.linalg.vector_norm(wide(x).flatten(1), dim=1)
    return per_row(norms, x)


def unit(x: Tensor) -> Tensor:
    """`x` over its norm; rows of zeros stay zero."""
    norm = radius(x)
    return wide(x) / torch.where(norm > 0, norm, 1.0)


def renormalise(x: Tensor, norm: Tensor) -> Tensor:
    """`x` at another norm, a number per row (`radius` of what it came from)."""
    return unit(x) * norm


def tangent(x: Tensor, direction: Tensor) -> Tensor:
    """The part of `direction` that is orthogonal to `x`."""
    u = unit(x)
    flat = wide(direction) - dot(u, direction) * u
    return flat - dot(u, flat) * u  # once more: what rounding left along u


def geodesic(x: Tensor, direction: Tensor, angle: float | Tensor) -> Tensor:
    """Along the great circle from `x` towards a tangent `direction`, by `angle` radians.

    The norm of `x` is kept; rows whose direction is zero stay where they are.
    """
    heading = unit(direction)
    moves = radius(heading) > 0
    turn = torch.as_tensor(angle, dtype=heading.dtype, device=heading.device)
    turn = torch.where(moves, turn, 0.0)
    return torch.cos(turn) * wide(x) + torch.sin(turn) * radius(x) * heading


def step_along(x: Tensor, tangential: Tensor, size: float) -> Tensor:
    """`x + size * |x| * tangential`, renormalised: a Riemannian step with projection as retraction.

    A unit `tangential` turns `x` by atan(size).
    """
    norm = radius(x)
    return renormalise(wide(x) + size * norm * tangential, norm)


def neighbours(x: Tensor, noise: Tensor, cosine: float | Tensor) -> Tensor:
    """Points at exactly this `cosine` from `x`, in the direction that `noise` gives each row.

    `|x| (cosine u + sqrt(1 - cosine^2) w)` with u = x / |x| and w the tangent part of `noise`,
    normalised (Ma et al. 2025, arXiv:2501.09732, zero-order search). `x` may be one row for all.
    """
    c = torch.as_tensor(cosine, dtype=wide(x).dtype, device=x.device)
    w = unit(tangent(x.expand_as(noise), noise))
    return radius(x) * (c * unit(x) + torch.sqrt(1 - c * c) * w)


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Angles between rows in radians, `(rows,)`; exact for small ones too."""
    u, v = unit(a), unit(b)
    return (2 * torch.atan2(radius(u - v), radius(u + v))).flatten()


def cap(x: Tensor, centre: Tensor, angle: float) -> Tensor:
    """`x`, but no further than `angle` radians from `centre`; norms are kept."""
    if not 0 < angle < math.pi:
        return wide(x)
    away = geodesic(unit(centre), tangent(centre, x), angle)
    far = angles(x, centre) > angle
    return torch.where(per_row(far, x), away * radius(x), wide(x))


def norm_score(noise: Tensor) -> float:
    """How unusual the norm of one noise is: `(|noise|^2 / d - 1) / sqrt(2 / d)`.

    Standard normal noise of d values has mean 0 and standard deviation 1 here.
    """
    d = noise.numel()
    return (float(noise.double().square().mean()) - 1) / math.sqrt(2 / d)
