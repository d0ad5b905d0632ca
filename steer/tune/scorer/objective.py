"""HPS v2's objective: softmax of the images' scores against the share of choices each had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def preference_loss(
    scores: Tensor, target: Tensor, mask: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean KL from the annotated preferences to the softmax over each prompt's images.

    Wu et al. 2023 (HPS v2, arXiv:2306.09341, eq. 2): KL(y || softmax(s)) with y the annotated
    distribution over the n images. For a one-hot y it is the cross-entropy; its gradient with
    respect to s is `(softmax(s) - y) / B`.

    Args:
        scores: `(B, n)` scaled similarities, `exp(logit_scale) * cosine`.
        target: `(B, n)`, rows that sum to 1; 0 where there is no image.
        mask: `(B, n)` bool, true where there is an image; None where all are.
        smoothing: Share of every target that is spread evenly over its images.

    Returns:
        A scalar, 0 where the softmax equals the target.
    """
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    if smoothing:
        target = (1 - smoothing) * target + smoothing * mask / mask.sum(1, keepdim=True)
    log_p = F.log_softmax(scores.masked_fill(~mask, float("-inf")), 1).masked_fill(~mask, 0.0)
    return F.kl_div(log_p, target * mask, reduction="batchmean")


def pair_loss(scores: Tensor, choice: Tensor) -> Tensor:
    """`preference_loss` of pairs.

    Args:
        scores: `(B, 2)` scaled similarities of the two images to their prompt.
        choice: `(B,)` share of annotators that chose the first.
    """
    return preference_loss(scores, torch.stack([choice, 1 - choice], 1))


def cosines(model: Any, pixels: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
    """Cosine of every image with its prompt.

    Args:
        model: An open_clip model.
        pixels: `(sum(counts), 3, H, W)` preprocessed, prompt by prompt.
        ids: `(B, context)` token ids.
        counts: Images per prompt.

    Returns:
        `(sum(counts),)` float32.
    """
    image = model.encode_image(pixels, normalize=True).float()
    text = model.encode_text(ids, normalize=True).float()
    repeats = torch.tensor(list(counts), device=text.device)
    return (image * text.repeat_interleave(repeats, 0, output_size=len(image))).sum(-1)


def pad_rows(values: Tensor, counts: Sequence[int], fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """`(sum(counts),)` values as `(B, max(counts))` rows, and where they are real."""
    rows = torch.nn.utils.rnn.pad_sequence(list(values.split(list(counts))), True, fill)
    sizes = torch.tensor(list(counts), device=values.device)
    return rows, torch.arange(rows.shape[1], device=values.device) < sizes[:, None]
