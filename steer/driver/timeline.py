"""A tensor that stands for `scheduler.timesteps` during a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


_STILL_TIME = frozenset({"__getitem__", "to", "cpu", "cuda", "clone", "detach", "contiguous"})


class Timeline(Tensor):
    """`scheduler.timesteps` during a search: iterating yields the timesteps that the search wants.

    Length, values, slices and `.to(...)` are those of the plain tensor.
    """

    follow: Callable[[Tensor], Iterator[Tensor]]

    @staticmethod
    def of(timesteps: Tensor, follow: Callable[[Tensor], Iterator[Tensor]]) -> Timeline:
        """`timesteps` whose iteration is `follow(timesteps)`."""
        line = timesteps.as_subclass(Tensor).as_subclass(Timeline)
        line.follow = follow
        return line

    def __iter__(self) -> Iterator[Tensor]:
        return self.follow(self.as_subclass(Tensor))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        source = args[0] if args else None
        if not isinstance(source, Timeline) or getattr(func, "__name__", "") not in _STILL_TIME:
            return result
        timely = isinstance(result, Tensor) and result.ndim == 1
        return Timeline.of(result, source.follow) if timely else result
