"""Work that several rewards do on the same images, done once.

While rewards are scored together (a weighted sum, an ensemble, minima), those of equal
preprocessing share the resized images, and those of equal weights the image features. Only where no
gradient is wanted: with one, every reward keeps a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor


_T = TypeVar("_T")
_shared: ContextVar[dict[Any, tuple[Tensor, Any]] | None] = ContextVar("steer_shared", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """What `once` makes inside is kept until the outermost of these ends."""
    if _shared.get() is not None:
        yield
        return
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def once(images: Tensor, key: tuple[Any, ...], make: Callable[[], _T]) -> _T:
    """`make()`, or what it returned before for the same tensor, unchanged since, and `key`."""
    found = _shared.get()
    if found is None or (torch.is_grad_enabled() and images.requires_grad):
        return make()
    version = None if images.is_inference() else images._version
    full = (id(images), version, torch.is_inference_mode_enabled(), *key)
    if full not in found:
        found[full] = (images, make())  # holds the tensor, so that its id stays its own
    return found[full][1]
