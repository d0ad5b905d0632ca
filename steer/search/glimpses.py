"""What final images looked like when they were scored, small: are they what is returned?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.core.types import Name


_SAME = 0.004  # of a mean over an area; pixels are rounded to 8 bits
_SAME_IN_HALF = 0.03  # half precision depends on the batch


@dataclass(eq=False)
class Glimpses:
    """8 x 8 pixels of every image that was scored as a particle's final one."""

    _seen: dict[Name, Tensor] = field(default_factory=dict)

    def keep(self, images: Tensor, ids: Sequence[Name]) -> None:
        """Remember these images `(B, 3, H, W)`, or the middle frames of videos."""
        if isinstance(images, Tensor):
            self._seen |= dict(zip(ids, _glimpse(images), strict=True))

    def agree(self, images: Tensor, ids: Sequence[Name], exact: bool) -> bool:
        """Whether these are the images that were scored as the particles' final ones.

        Args:
            images: `(B, 3, H, W)`, perhaps rounded to 8 bits.
            ids: The particle of each.
            exact: Whether the pipeline computes in float32 at least.
        """
        known = [row for row, name in enumerate(ids) if name in self._seen]
        if not known or not isinstance(images, Tensor):
            return True
        scored = torch.stack([self._seen[ids[row]] for row in known])
        gap = (_glimpse(images)[known].to(scored) - scored).abs().max()
        return bool(gap < (_SAME if exact else _SAME_IN_HALF))

    def clear(self) -> None:
        """Forget them all."""
        self._seen.clear()


def _glimpse(images: Tensor) -> Tensor:
    """`(B, 3, 8, 8)` of images, or of the middle frame of videos, by area."""
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    return F.adaptive_avg_pool2d(images.detach().float(), 8)
