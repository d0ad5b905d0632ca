"""NaN pixels, which are black and look like a picture once they are 8 bits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steer.driver.decoding.vae import autoencoder


def nan_rows(images: Any) -> list[bool]:
    """Whether each image or video `(B, ...)` has NaN pixels; none of what is no tensor has."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        return [False] * len(images)
    return images.detach().isnan().flatten(1).any(1).tolist()


class Decoded:
    """What a pipeline's decoder returned for a while: whether each row has NaN pixels."""

    def __init__(self) -> None:
        self.rows: list[bool] = []

    def of(self, count: int) -> list[bool]:
        """By returned image; all of them where rows are no images (frames, tiles)."""
        return self.rows if len(self.rows) == count else [any(self.rows)] * count


@contextmanager
def decoding_of(pipe: Any, when: Callable[[], bool] = lambda: True) -> Iterator[Decoded]:
    """Note what `pipe`'s decoder returns, as long as `when()`; the decoder is put back."""
    found, vae = Decoded(), autoencoder(pipe)
    decode = getattr(vae, "decode", None)
    if decode is None:
        yield found
        return

    @functools.wraps(decode)
    def noting(*args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        images = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        if when() and isinstance(images, Tensor) and images.ndim:
            found.rows += nan_rows(images)
        return output

    own = vars(vae).get("decode")
    object.__setattr__(vae, "decode", noting)
    try:
        yield found
    finally:
        if own is None:
            object.__delattr__(vae, "decode")
        else:
            object.__setattr__(vae, "decode", own)


def without_nan(values: Tensor, whole: list[int], groups: list[int]) -> Tensor:
    """Scores of the whole rows spread over all; the others get less than any of their group.

    Args:
        values: `(len(whole),)`.
        whole: Rows that were scored.
        groups: Of every row; each has a whole one.
    """
    full = values.new_empty(len(groups))
    full[whole] = values
    for row in sorted(set(range(len(groups))).difference(whole)):
        worst = min(full[k] for k in whole if groups[k] == groups[row])
        full[row] = torch.nextafter(worst, worst.new_tensor(-torch.inf))
    return full
