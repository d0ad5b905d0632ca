"""Losses that learn from wrong captions: no scores, no pairs of images; pure functions.

They are for loops of one's own: the trainer gives its losses one caption per image. An image, its
noise and its timestep are shared by all captions that it is held against.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.core.errors import TuneError
from steer.core.types import wide


def text_dpo(right: Tensor, wrong: Tensor, pull: float = 1.0) -> Tensor:
    """TDPO: -log sigma(r_right - r_wrong), of one image under two captions (arXiv:2509.25771).

    The wrong caption is the right one with something changed: a word, a number, a relation.

    Args:
        right, wrong: Implicit rewards of the image under its own and under the changed caption,
            beta (log pi - log pi_ref), (B,); see `steer.tune.objectives`.
        pull: What the wrong caption's gradient is multiplied by, in [0, 1]; the paper clips it, so
            that the right caption's error does not rise with it.

    Returns:
        (B,); log 2 where policy = reference. Values do not depend on `pull`.

    Raises:
        TuneError: `pull` is outside.
    """
    if not 0 <= pull <= 1:
        raise TuneError(f"pull={pull!r}: must be in [0, 1], such as 0.3")
    right, wrong = wide(right), wide(wrong)
    still = wrong.detach()
    return -F.logsigmoid(right - (still + pull * (wrong - still)))


def caption_contrast(
    errors: Tensor, scale: float = 4.0, temperature: float = 0.07, keep: float = 0.0
) -> Tensor:
    """SoftREPA: images find their own among several captions (arXiv:2503.08250).

    The cross-entropy of softmax_j(s exp(-E_ij / tau)) at the image's own caption, j = i, plus
    keep E_ii. One noise and timestep for all of a batch.

    Args:
        errors: E_ij, the mean squared error of image i under caption j, (B, C) with C at least B;
            image i's own caption is i, further columns are wrong for all.
        scale, temperature: s, tau, positive; the published code learns both, from these values.
        keep: Weight of the image's own error; the published settings have 10 for SD 1.5 and SDXL,
            0 for SD3.

    Returns:
        (B,).

    Raises:
        TuneError: `errors` is not such a table, or a setting is outside.
    """
    if errors.ndim != 2 or errors.shape[1] < errors.shape[0]:
        raise TuneError(
            f"errors of shape {tuple(errors.shape)}: must be (images, captions), with at least one "
            "caption per image"
        )
    if not (scale > 0 and temperature > 0 and keep >= 0):
        raise TuneError(
            f"scale={scale!r}, temperature={temperature!r}, keep={keep!r}: the first two must be "
            "positive, the last not negative"
        )
    errors = wide(errors)
    logits = scale * (-errors / temperature).exp()
    own = torch.arange(len(errors), device=errors.device)
    return F.cross_entropy(logits, own, reduction="none") + keep * errors.diagonal()
