"""Outputs of pipelines as tensors, and how far they are from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensors(output: Any) -> list[Tensor]:
    """All numbers of an output, in order, as float64 tensors."""
    if isinstance(output, Mapping):
        return [tensor for part in output.values() for tensor in tensors(part)]
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in tensors(part)]
    if isinstance(output, Tensor):
        return [output.detach().double()]
    array = np.asarray(output) if hasattr(output, "convert") else output
    if isinstance(array, np.ndarray) and array.dtype.kind in "fiub":
        return [torch.from_numpy(np.array(array)).double()]
    return []


def difference(one: Any, other: Any) -> float:
    """The largest difference of two outputs; infinite where they do not have the same form."""
    first, second = tensors(one), tensors(other)
    if not first or [t.shape for t in first] != [t.shape for t in second]:
        return float("inf")
    return max(_gap(a, b) for a, b in zip(first, second, strict=True))


def _gap(one: Tensor, other: Tensor) -> float:
    if not one.numel() or torch.equal(one, other):
        return 0.0
    if not torch.equal(one.isnan(), other.isnan()):
        return float("inf")
    return float((one - other).nan_to_num().abs().max())


def frames(output: Any) -> Tensor | None:
    """The pictures of an output as `(rows, C, H, W)` floats, frames of videos one after the other.

    Sound and embeddings are pictures here too, of one channel or line; None for what has no rows
    of numbers.
    """
    if isinstance(output, list | tuple):
        parts = [frames(part) for part in output]
        found = [part for part in parts if part is not None]
        return torch.cat(found) if parts and len(found) == len(parts) else None
    if hasattr(output, "convert"):
        return torch.from_numpy(np.array(output.convert("RGB"))).float().movedim(-1, 0)[None] / 255
    if isinstance(output, np.ndarray):
        output = _channels_first(torch.from_numpy(np.array(output)))
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4, 5):
        return None
    pictures = output.detach().float()
    if pictures.ndim == 2:
        return pictures[:, None, None]
    return pictures[None] if pictures.ndim == 3 else pictures.flatten(0, -4)


def _channels_first(array: Tensor) -> Tensor:
    return array.movedim(-1, -3) if array.ndim >= 3 and array.shape[-1] in (1, 3) else array


def _row(output: Any) -> Tensor:
    """One output as pictures, or as a picture of one line."""
    pictures = frames(output)
    if pictures is None or (isinstance(output, Tensor) and output.ndim < 3):
        pictures = torch.cat([part.flatten() for part in tensors(output)])[None, None, None].float()
    return pictures


class Brightness:
    """A reward, the mean of all pixels, that keeps what it was shown."""

    differentiable = True
    needs_prompt = False
    __name__ = "brightness"

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor | list[Any], prompts: Sequence[str]) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1], or a list of other outputs, to scores `(B,)`."""
        if isinstance(images, list):
            rows = [_row(row) for row in images]
            self.seen.append(torch.cat(rows))
            return torch.stack([row.mean() for row in rows])
        self.seen.append(images.detach().float().cpu())
        return images.float().flatten(1).mean(1)

    def nearest(self, pictures: Tensor | None) -> float:
        """Distance of `pictures` to the nearest run of as many that were shown.

        Infinite where nothing of that size was shown.
        """
        if pictures is None or not len(pictures):
            return float("inf")
        pictures = pictures.flatten(1)
        shown = [batch.flatten(1) for batch in self.seen]
        shown = [batch for batch in shown if batch.shape[1] == pictures.shape[1]]
        if not shown:
            return float("inf")
        every, count = torch.cat(shown), len(pictures)
        runs = [every[start : start + count] for start in range(0, len(every), count)]
        whole = [run for run in runs if len(run) == count]
        return min((float((run - pictures).abs().max()) for run in whole), default=float("inf"))
