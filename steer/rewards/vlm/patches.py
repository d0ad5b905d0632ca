"""Images and videos as the patches that a Qwen vision tower reads, on tensors and differentiable.

A restatement of transformers' `Qwen2VLImageProcessor`, which Qwen2-VL, Qwen2.5-VL, Qwen3-VL and
Qwen3.5 share, and of the last two's `Qwen3VLVideoProcessor`: antialiased bicubic resize, normalise,
cut into patches. It agrees with the processors up to their own rounding to 8 bits, after each axis
of the resize.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steer.rewards.clip.preprocess import OPENAI_MEAN, OPENAI_STD


MOST_ELONGATED = 200
"""The longest side over the shortest; Qwen's processors refuse more."""

_BICUBIC = 3  # PIL's number


@dataclass(frozen=True)
class Patches:
    """One model's preprocessing.

    Attributes:
        least: Fewest pixels after the resize.
        most: Most pixels after the resize.
        patch: Side of a patch, in pixels.
        merge: Side of the squares of patches that become one token.
        depth: Frames of a patch; an image is repeated that often.
        mean: Per channel, subtracted last.
        std: Per channel, divided by last.
        together: The bounds are of all frames of a video together, as Qwen3-VL's are.
    """

    least: int = 56 * 56
    most: int = 1280 * 28 * 28
    patch: int = 14
    merge: int = 2
    depth: int = 2
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    together: bool = False

    @classmethod
    def from_processor(cls, images: Any) -> Patches | None:
        """What a processor of images or videos does; `None` where this class cannot restate it.

        Args:
            images: A processor's `image_processor` or `video_processor`.
        """
        whole = ("do_resize", "do_rescale", "do_normalize")
        kind = type(images).__name__
        if not kind.startswith(("Qwen2VLImageProcessor", "Qwen3VLVideoProcessor")):
            return None
        if not all(getattr(images, name) for name in whole) or images.resample != _BICUBIC:
            return None
        least, most = (_pixels(images, *names) for names in _AREAS)
        if not (least and most):
            return None
        return cls(
            least,
            most,
            images.patch_size,
            images.merge_size,
            images.temporal_patch_size,
            tuple(images.image_mean),
            tuple(images.image_std),
            kind.startswith("Qwen3VLVideoProcessor"),
        )

    def size(self, height: int, width: int, frames: int = 1) -> tuple[int, int]:
        """Height and width after the resize: whole tokens, and an area between the bounds.

        Args:
            height: Of the image or video, in pixels.
            width: Likewise.
            frames: Of a video; they count where the bounds are of all together.

        Raises:
            ValueError: An image whose sides are further apart than `MOST_ELONGATED`.
        """
        if max(height, width) > MOST_ELONGATED * min(height, width):
            raise ValueError(
                f"images are {height} x {width} pixels: the model takes a long side of at most "
                f"{MOST_ELONGATED} times the short one; crop or pad them"
            )
        unit = self.patch * self.merge
        shown = frames if self.together else 1
        full = math.ceil(frames / self.depth) * self.depth if self.together else 1
        rows, columns = (round(side / unit) * unit for side in (height, width))
        if full * rows * columns > self.most:
            scale = math.sqrt(shown * height * width / self.most)
            rows, columns = (
                max(unit, math.floor(side / scale / unit) * unit) for side in (height, width)
            )
        elif full * rows * columns < self.least:
            scale = math.sqrt(self.least / (shown * height * width))
            rows, columns = (math.ceil(side * scale / unit) * unit for side in (height, width))
        return rows, columns

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patches and their grid.

        Args:
            images: `(B, 3, H, W)`, or videos `(B, F, 3, H, W)`, float32 in [0, 1]. A video's last
                frame is repeated until whole patches are full.

        Returns:
            `(B * T * h * w, 3 * depth * patch * patch)` in the order of the model's tokens, and the
            grid `(B, 3)` int64 of every image: T, h and w, in patches.

        Raises:
            ValueError: Images that are too elongated.
        """
        videos = images[:, None] if images.ndim == 4 else images
        videos = self._resize(videos)
        mean, std = (videos.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        videos = self._fill((videos - mean) / std)
        count, frames, channels, height, width = videos.shape
        time, rows, columns = frames // self.depth, height // self.patch, width // self.patch
        cut = videos.reshape(
            count,
            time,
            self.depth,
            channels,
            rows // self.merge,
            self.merge,
            self.patch,
            columns // self.merge,
            self.merge,
            self.patch,
        ).permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
        grid = torch.tensor([[time, rows, columns]], device=images.device).repeat(count, 1)
        return cut.reshape(count * time * rows * columns, -1), grid

    def tokens(self, grid: Tensor) -> int:
        """Tokens that one image or video of a grid `(B, 3)` becomes; all of it are of one size."""
        return int(grid[0].prod()) // self.merge**2

    def _resize(self, videos: Tensor) -> Tensor:
        target = self.size(videos.shape[-2], videos.shape[-1], videos.shape[1])
        if target == tuple(videos.shape[-2:]):
            return videos
        flat = videos.flatten(0, 1)
        flat = F.interpolate(flat, target, mode="bicubic", antialias=True, align_corners=False)
        return flat.clamp(0, 1).unflatten(0, videos.shape[:2])

    def _fill(self, videos: Tensor) -> Tensor:
        missing = -videos.shape[1] % self.depth
        last = videos[:, -1:].expand(-1, missing, -1, -1, -1)
        return torch.cat([videos, last], 1) if missing else videos


_AREAS = (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels"))


def _pixels(images: Any, *names: str) -> int | None:
    """A bound on the area, under whatever name a version of transformers keeps it."""
    size: Any = images.size
    for name in names:
        found = size.get(name) if isinstance(size, dict) else getattr(size, name, None)
        found = found or getattr(images, name, None)
        if found:
            return int(found)
    return None
