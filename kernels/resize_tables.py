"""Bicubic resizing as tables: per axis, which source pixels each output pixel reads, and how much.

Antialiased bicubic resizing is linear and separable, so that one sparse matrix per axis says all.
`match="torch"` takes that matrix from `F.interpolate` itself, applied to the unit matrix in
float64; `match="pil"` computes Pillow's fixed-point weights (multiples of 2**-22).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


FIXED_POINT = 2**22
"""What Pillow's 8-bit weights are multiples of the inverse of."""

OUTPUT_TILE = 16
"""Outputs per side of one forward program."""

INPUT_TILE = 32
"""Source pixels per side of one backward program."""

_CHUNK = 512


@dataclass(frozen=True)
class Axis:
    """One axis of a resize with crop or padding: `(size,)` outputs, each a window of the source.

    Attributes:
        start: `(size,)` int32, the first source pixel of each window, never decreasing.
        weights: `(size, taps)` float32, zero where the window leaves the source and for padding;
            for `match="pil"` whole numbers.
        source: Source pixels.
        inside: The outputs that are image, not padding: first, and one past the last.
        span: The most source pixels that `OUTPUT_TILE` neighbouring outputs read.
        first: Per `INPUT_TILE` source pixels, the first output that reads one of them; int32.
        end: One past the last of them.
        readers: The most outputs of one such tile.
    """

    start: Tensor
    weights: Tensor
    source: int
    inside: tuple[int, int]
    span: int
    first: Tensor
    end: Tensor
    readers: int

    @property
    def taps(self) -> int:
        """Width of the windows."""
        return self.weights.shape[1]

    def matrix(self) -> Tensor:
        """The same as one matrix `(size, source)`, float64."""
        index = self.start[:, None].long() + torch.arange(self.taps, device=self.start.device)
        out = self.weights.new_zeros((len(self.start), self.source + self.taps), dtype=torch.double)
        return out.scatter_(1, index, self.weights.double())[:, : self.source]


def target(height: int, width: int, size: int, fit: str) -> tuple[int, int]:
    """Height and width after resizing, before crop or padding.

    `"longest"` as open_clip's `ResizeMaxSize`, `"shortest"` as torchvision's `Resize(int)`.
    """
    if fit == "longest":
        scale = size / max(height, width)
        return max(round(height * scale), 1), max(round(width * scale), 1)
    length = int(size * max(height, width) / min(height, width))
    return (size, length) if height <= width else (length, size)


@lru_cache(maxsize=256)
def axis(
    source: int, target: int, size: int, crop: str, antialias: bool, match: str, device: str
) -> Axis:
    """The table of `source` pixels resized to `target`, then cropped or padded to `size`."""
    with torch.inference_mode(False), torch.no_grad():
        full = _fixed_point(source, target) if match == "pil" else _torch(source, target, antialias)
        wanted = torch.arange(size) + _offset(target - size, crop)
        row = wanted.clamp(0, target - 1)
        start, taps = _windows(full)
        start = start[row]
        index = start[:, None] + torch.arange(taps)
        weights = full[row].gather(1, index.clamp(max=source - 1)) * (index < source)
        weights[(wanted < 0) | (wanted >= target)] = 0
        reach = min(OUTPUT_TILE, size) - 1
        image = ((wanted >= 0) & (wanted < target)).nonzero()
        first, end = _readers(start, taps, source)
        return Axis(
            start=start.int().to(device),
            weights=weights.float().to(device),
            source=source,
            inside=(int(image[0]), int(image[-1]) + 1),
            span=taps + int((start[reach:] - start[: size - reach]).max()),
            first=first.int().to(device),
            end=end.int().to(device),
            readers=int((end - first).max()),
        )


def _offset(extra: int, crop: str) -> int:
    """Where the outputs begin in the resized image, which has `extra` pixels too many (or few)."""
    if extra < 0:
        return -(-extra // 2)
    return extra // 2 if crop == "floor" else round(extra / 2)


def _readers(start: Tensor, taps: int, source: int) -> tuple[Tensor, Tensor]:
    """Per tile of source pixels, the outputs that read it: first, and one past the last."""
    low = torch.arange(0, source, INPUT_TILE)
    first = torch.searchsorted(start + taps, low, right=True)
    return first, torch.searchsorted(start, low + INPUT_TILE - 1, right=True)


def _torch(source: int, target: int, antialias: bool) -> Tensor:
    """`F.interpolate`'s own matrix `(target, source)`: what it makes of the unit matrix."""
    if source == target:
        return torch.eye(source, dtype=torch.double)
    parts = []
    for low in range(0, source, _CHUNK):
        wide = min(_CHUNK, source - low)
        size = (target, wide + 1)  # one to spare: torch 2.15 is wrong for images one pixel wide
        unit = torch.zeros((1, 1, source, wide + 1), dtype=torch.double)
        unit[0, 0, torch.arange(low, low + wide), torch.arange(wide)] = 1
        part = F.interpolate(unit, size, mode="bicubic", antialias=antialias, align_corners=False)
        parts.append(part[0, 0, :, :wide])
    return torch.cat(parts, 1)


def _fixed_point(source: int, target: int) -> Tensor:
    """Pillow's 8-bit bicubic matrix `(target, source)`, in units of 2**-22."""
    scale = source / target
    stretch = max(scale, 1.0)
    centre = (torch.arange(target, dtype=torch.double) + 0.5) * scale
    low = (centre - 2 * stretch + 0.5).long().clamp(min=0)[:, None]
    high = (centre + 2 * stretch + 0.5).long().clamp(max=source)[:, None]
    index = torch.arange(source)[None, :]
    weights = _cubic((index - centre[:, None] + 0.5) / stretch) * ((index >= low) & (index < high))
    weights = weights / weights.sum(1, keepdim=True) * FIXED_POINT
    return (weights + 0.5 * weights.sign()).trunc()


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5 (IEEE Trans. ASSP 29, 1981)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _windows(matrix: Tensor) -> tuple[Tensor, int]:
    """First column of each row's window, and the width that serves all rows."""
    used = matrix != 0
    first = used.int().argmax(1)
    last = matrix.shape[1] - 1 - used.flip(1).int().argmax(1)
    first = torch.cummin(first.flip(0), 0).values.flip(0)  # an exact zero must not break the order
    return first, int((last - first).max()) + 1
