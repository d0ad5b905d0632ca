"""How well an image compresses: the size of its JPEG file, as a reward or as a penalty.

Black et al. 2023 (arXiv:2305.13301): JPEG at quality 95, file size in kB of 1000 bytes. The size is
that of what Pillow writes, at the image's own resolution: scores compare images of one size only
(the paper's are 512 x 512).
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from steer.rewards.base import BaseReward, check_batch


QUALITY = 95


class JpegReward(BaseReward):
    """`sign` times the JPEG size in kB; not differentiable, ignores prompts, runs on the CPU.

    Args:
        name: Short name.
        sign: -1 rewards small files, +1 large ones.
        batch: Most images moved to the CPU at once.
    """

    family = "jpeg"
    differentiable = False
    needs_prompt = False

    def __init__(self, name: str, sign: float, *, batch: int | None = 32) -> None:
        self.name, self.sign = name, sign
        self.batch = check_batch(batch)
        self.range = (float("-inf"), 0.0) if sign < 0 else (0.0, float("inf"))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        levels = (images.detach() * 255).round().clamp(0, 255).to(torch.uint8)
        arrays = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        sizes = torch.tensor([jpeg_bytes(Image.fromarray(array)) for array in arrays])
        return self.sign * sizes / 1000


def compressibility(*, batch: int | None = 32) -> JpegReward:
    """Minus the JPEG size in kB at quality 95 (arXiv:2305.13301); higher is smoother.

    Args:
        batch: Most images moved to the CPU at once.
    """
    return JpegReward("compressibility", -1.0, batch=batch)


def incompressibility(*, batch: int | None = 32) -> JpegReward:
    """The JPEG size in kB at quality 95 (arXiv:2305.13301); higher is busier.

    Args:
        batch: Most images moved to the CPU at once.
    """
    return JpegReward("incompressibility", 1.0, batch=batch)


def jpeg_bytes(image: Image.Image) -> int:
    """How many bytes Pillow needs for `image` as a JPEG of quality 95."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell()
