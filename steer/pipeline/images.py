"""Images out of a pipeline's output, whatever form they have there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steer.rewards.inputs import SLACK


def first_of(output: Any) -> Any:
    """What a pipeline makes: the first field of its output, or an output without fields."""
    if isinstance(output, tuple | Mapping):
        return output[0]  # diffusers' outputs are mappings that are indexed like tuples
    return output


def fields(output: Any) -> dict[Any, Any]:
    """The fields of a pipeline's output by name, or by place."""
    if isinstance(output, Mapping):
        return dict(output)
    return dict(enumerate(output)) if isinstance(output, tuple) else {0: output}


def is_per_row(value: Any, rows: int) -> bool:
    """Whether a field has one entry per row."""
    return isinstance(value, list | Tensor | np.ndarray) and len(value) == rows


def images_of(first: Any, device: Any) -> Tensor | None:
    """Images `(B, 3, H, W)`, or videos `(B, F, 3, H, W)`, as floats in [0, 1]; None for others.

    Args:
        first: What a pipeline returned: a tensor, channels-last numpy, PIL images, lists of them.
        device: Where arrays and PIL images go.
    """
    if isinstance(first, Image.Image):
        first = [first]
    if isinstance(first, list):
        try:
            first = _stacked(first)
        except (AttributeError, TypeError, ValueError):
            return None
    if isinstance(first, Tensor):
        return first.float() if _channels(first.shape, -3) else None
    if not isinstance(first, np.ndarray) or not _channels(first.shape, -1):
        return None
    return torch.from_numpy(np.ascontiguousarray(first)).to(device).movedim(-1, -3).float()


def are_pictures(images: Tensor) -> bool:
    """Whether these have three channels in about [0, 1], as no depths or normals have."""
    low, high = torch.stack(images.nan_to_num(0.5).aminmax()).tolist()
    return images.shape[-3] == 3 and low >= -SLACK and high <= 1 + SLACK


def _channels(shape: tuple[int, ...], place: int) -> bool:
    return len(shape) >= 4 and shape[place] in (1, 3, 4)


def _stacked(items: list[Any]) -> Tensor | np.ndarray:
    """A list of tensors, arrays, images, or lists of them as one batch."""
    if isinstance(items[0], list):
        items = [_stacked(item) for item in items]
    if isinstance(items[0], Tensor):
        return torch.stack(items)
    if isinstance(items[0], np.ndarray):
        return np.stack(items)
    return np.stack([np.asarray(item.convert("RGB")) for item in items]) / np.float32(255)
