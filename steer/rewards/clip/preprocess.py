"""From images to what a CLIP tower eats: resize, crop or pad, normalise.

On tensors, differentiable, in float32 or better. Resampling is antialiased bicubic (the cubic of
a = -0.5, as PIL's), and agrees with PIL up to PIL's own rounding to 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor


Resize: TypeAlias = Literal["shortest", "longest", "squash"]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """One model's preprocessing.

    Attributes:
        size: Height and width the model takes.
        mean: Per channel, subtracted last.
        std: Per channel, divided by last.
        resize: `"shortest"` side to size, then centre crop; `"longest"` side to size, then pad
            with `fill` on both sides; `"squash"` ignores the aspect ratio.
        interpolation: `"bicubic"` or `"bilinear"`.
        fill: Padding value in [0, 1], before normalisation.
        antialias: `False` reproduces tensor resizing of torchvision before 0.17.
        clamp: Cut the resampling overshoot back to [0, 1], as 8-bit PIL images do.
        crop: How half of an odd number of pixels is rounded: `"round"` as torchvision and
            open_clip, `"floor"` as transformers.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    resize: Resize = "shortest"
    interpolation: str = "bicubic"
    fill: float = 0.0
    antialias: bool = True
    clamp: bool = True
    crop: Literal["round", "floor"] = "round"

    @classmethod
    def from_open_clip(cls, cfg: dict[str, Any], size: int | tuple[int, int]) -> Preprocess:
        """From an open_clip `preprocess_cfg` and the model's own image size.

        Raises:
            ValueError: A resize mode or an interpolation that open_clip does not know.
        """
        resize, interpolation = cfg.get("resize_mode", "shortest"), cfg.get("interpolation")
        if resize not in ("shortest", "longest", "squash"):
            raise ValueError(f"resize_mode={resize!r}: one of 'shortest', 'longest', 'squash'")
        if interpolation not in (None, "bicubic", "bilinear", "random"):
            raise ValueError(f"interpolation={interpolation!r}: one of 'bicubic', 'bilinear'")
        return cls(
            size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
            mean=_triple(cfg.get("mean"), OPENAI_MEAN),
            std=_triple(cfg.get("std"), OPENAI_STD),
            resize=resize,
            interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
            fill=float(cfg.get("fill_color") or 0) / 255,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` float32 or float64 in [0, 1] to `(B, 3, *size)`, normalised."""
        images = self._resize(images)
        images = self._fit(images)
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (images - mean) / std

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, before crop or pad."""
        rows, columns = self.size
        if self.resize == "squash":
            return rows, columns
        if self.resize == "longest":
            scale = min(rows / height, columns / width)
        elif rows == columns:  # torchvision's Resize(int): the long side is truncated
            short, long = min(height, width), max(height, width)
            length = int(rows * long / short)
            return (rows, length) if height <= width else (length, rows)
        else:
            scale = max(rows / height, columns / width)
        return max(round(height * scale), 1), max(round(width * scale), 1)

    def _resize(self, images: Tensor) -> Tensor:
        target = self.target(*images.shape[-2:])
        if target == tuple(images.shape[-2:]):
            return images
        images = F.interpolate(
            images, target, mode=self.interpolation, antialias=self.antialias, align_corners=False
        )
        return images.clamp(0, 1) if self.clamp else images

    def _fit(self, images: Tensor) -> Tensor:
        """Centre crop what is too large, pad what is too small (the odd pixel right and below)."""
        for axis, size in ((-2, self.size[0]), (-1, self.size[1])):
            extra = images.shape[axis] - size
            if extra > 0:
                start = extra // 2 if self.crop == "floor" else round(extra / 2)
                images = images.narrow(axis, start, size)
        down, right = self.size[0] - images.shape[-2], self.size[1] - images.shape[-1]
        if not (down or right):
            return images
        pad = (right // 2, right - right // 2, down // 2, down - down // 2)
        return F.pad(images, pad, value=self.fill)


def _triple(value: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    if value is None:
        return default
    return tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),) * 3


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """What to preprocess and compare features in, for weights of `dtype`: at least float32."""
    return torch.promote_types(dtype, torch.float32)
