"""Words drawn by Pillow, and what spoils them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor


def page(
    *lines: str, size: int = 40, side: int = 320, ink: str = "black", paper: str = "white"
) -> Image.Image:
    """Lines of text below each other, on a square."""
    image = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        place = (side // 16, side // 8 + row * (size * 3 // 2))
        draw.text(place, line, fill=ink, font=ImageFont.load_default(size))
    return image


def blurred(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def noisy(image: Image.Image, deviation: float, seed: int = 0) -> Image.Image:
    """With normal noise of a standard deviation in grey levels."""
    noise = np.random.default_rng(seed).normal(0, deviation, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def as_tensor(*images: Image.Image) -> Tensor:
    """`(B, 3, H, W)` float32 in [0, 1]."""
    arrays = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255
