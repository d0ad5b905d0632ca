"""The model family that a checkpoint seems made for, by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping


_CROSS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
}
_MARKS = (
    ("single_transformer_blocks", "Flux"),
    ("joint_blocks", "Stable Diffusion 3 in its original layout"),
    ("double_blocks", "Flux in its original layout"),
    ("img_mod", "Qwen-Image"),
    ("adaln_single", "PixArt"),
    ("add_k_proj", "Stable Diffusion 3"),
)
_CROSS_KEY = re.compile(r"attn2[._](?:processor[._])?to_k")


def seems_made_for(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The family with these names and widths; `None` if unknown.

    Args:
        shapes: Names and shapes of a denoiser's tensors, or of a LoRA's.
    """
    for mark, family in _MARKS:
        if any(mark in name for name in shapes):
            return family
    for name, shape in shapes.items():
        inward = not re.search(r"lora_B|\.up\.|lora_up|_lora\.up", name)
        if _CROSS_KEY.search(name) and inward and len(shape) >= 2:
            width = shape[1]
            return _CROSS.get(width, f"a UNet with text features of width {width}")
    return None
