"""White noise by its spectrum: every band of frequencies as strong as white noise has it.

The norm of noise says how strong it is, and nothing about where: an ascent that keeps the norm may
still move energy into a few low frequencies, which the denoiser has never seen there.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from steer.core.sphere import radius, renormalise
from steer.core.types import wide


def whiten(x: Tensor, block: int, like: Tensor | None = None) -> Tensor:
    """`x` with the norm of every block of frequencies put right, phases and ratios inside it kept.

    The projection onto a set of white noise that block-wise norms of the Fourier transform define
    (projected gradient ascent, 2026, arXiv:2602.08646). The transform is orthonormal and runs over
    all axes behind the channels: `(rows, C, h, w)`, `(rows, C, f, h, w)`; of packed tokens
    `(rows, tokens, C)` along the tokens, since noise that is white is so in any order. Frequencies
    of each channel are sorted by their distance from zero and cut into blocks of about `block`
    numbers, those of a frequency and of its conjugate together, so that it is idempotent. Where a
    channel has fewer than two blocks of numbers, the whole row is one block: a sphere.

    Standard normal noise moves by a share of about `1 / sqrt(2 block)` of its norm. Small blocks
    keep energy from moving further; very small ones leave nothing to choose.

    Args:
        x: `(rows, *latent)`, of any rank from 2 on.
        block: Real numbers per block, at least 1.
        like: Noise whose blocks have the right norms, same shape; `None` for the expected norms of
            standard normal noise, the square roots of the blocks' sizes.

    Returns:
        Same shape, float32 at least; blocks of zeros stay zero.
    """
    axes = tuple(range(2, x.ndim)) or (1,)
    if x.ndim == 3:
        axes = (1,)
    shape = tuple(x.shape[axis] for axis in axes)
    if math.prod(shape) < 2 * block:
        norm = math.sqrt(x[0].numel()) if like is None else radius(like)
        return renormalise(x, torch.as_tensor(norm, device=x.device))
    labels, weights = _blocks(shape, block)
    labels = torch.from_numpy(labels).to(x.device)
    weights = torch.from_numpy(weights).to(x.device, wide(x[:0]).dtype)

    def energies(spectrum: Tensor) -> Tensor:
        own = spectrum.abs().square() * weights
        total = own.new_zeros(*own.shape[:-1], int(labels.max()) + 1)
        return total.index_add(-1, labels, own)

    spectrum = _transform(x, axes)
    now = energies(spectrum)
    right = (
        energies(torch.ones_like(spectrum)) if like is None else energies(_transform(like, axes))
    )
    gain = torch.where(now > 0, right / now, 1.0).sqrt()
    return _invert(spectrum * gain[..., labels], x, axes, shape)


def _transform(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The half spectrum of every row and channel, `(rows, channels, frequencies)`."""
    spectrum = torch.fft.rfftn(wide(x), dim=axes, norm="ortho")
    return spectrum.movedim(axes, tuple(range(-len(axes), 0))).flatten(x.ndim - len(axes))


def _invert(spectrum: Tensor, x: Tensor, axes: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    half = (*shape[:-1], shape[-1] // 2 + 1)
    whole = spectrum.unflatten(-1, half).movedim(tuple(range(-len(axes), 0)), axes)
    return torch.fft.irfftn(whole, s=shape, dim=axes, norm="ortho")


@functools.lru_cache(maxsize=16)
def _blocks(shape: tuple[int, ...], block: int) -> tuple[np.ndarray, np.ndarray]:
    """The block of every frequency of the half spectrum, and how many real numbers it stands for.

    Frequencies that differ in signs alone are in one block: conjugates get one factor.
    """
    sizes = [np.minimum(np.arange(n), n - np.arange(n)) for n in shape[:-1]]
    last = np.arange(shape[-1] // 2 + 1)
    index = np.stack([axis.ravel() for axis in np.meshgrid(*sizes, last, indexing="ij")])
    distance = sum((k / n) ** 2 for k, n in zip(index, shape, strict=True))
    weights = np.where((index[-1] == 0) | (2 * index[-1] == shape[-1]), 1.0, 2.0)
    kinds, kind = np.unique(np.vstack([distance, index]).T, axis=0, return_inverse=True)
    counts = np.bincount(kind.ravel(), weights, len(kinds))
    before = np.cumsum(counts) - counts
    labels = np.minimum(before // block, math.prod(shape) // block - 1)
    return labels.astype(np.int64)[kind.ravel()], weights
