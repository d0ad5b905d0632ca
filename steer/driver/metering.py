"""FLOPs of the pipeline's denoiser, counted in its first call and remembered by shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

from steer.core.meter import FlopCounter
from steer.driver.narrow import denoisers_of, is_compiled
from steer.driver.replaced import replaced


Counted: TypeAlias = MutableMapping[nn.Module, dict[tuple[Any, ...], float]]
"""FLOPs of a module's forward pass by the shapes of what it was given."""


def is_countable(modules: Sequence[nn.Module]) -> bool:
    """Whether none of the modules is compiled: torch's counter would make it run uncompiled."""
    return not any(map(is_compiled, modules))


class Metering:
    """Counts what the denoiser, and a ControlNet, do up to the first call of `scheduler.step`.

    Args:
        pipe: The pipeline.
        begun: Whether that call has been made.
        counted: What was counted before.

    Attributes:
        total: FLOPs so far; 0 where torch cannot count them.
    """

    def __init__(self, pipe: Any, begun: Callable[[], bool], counted: Counted) -> None:
        self.pipe, self.begun, self.counted = pipe, begun, counted
        self.total = 0.0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace `forward` of the instances; restored afterwards."""
        with ExitStack() as stack:
            for module in denoisers_of(self.pipe).values():
                inner: Callable[..., Any] = module.forward
                around = functools.wraps(inner)(functools.partial(self._forward, inner, module))
                stack.enter_context(replaced(module, {"forward": around}))
            yield

    def _forward(
        self, inner: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any
    ) -> Any:
        if self.begun():
            return inner(*args, **kwargs)
        known, shapes = self.counted.setdefault(module, {}), _shapes((args, kwargs))
        if shapes in known:
            answer = inner(*args, **kwargs)
        else:
            try:
                with FlopCounter() as counter:
                    answer = inner(*args, **kwargs)
                known[shapes] = float(counter.total)
            except NotImplementedError:  # torch counts no flexible attention outside its compiler
                answer, known[shapes] = inner(*args, **kwargs), 0.0
        self.total += known[shapes]
        return answer


def _shapes(value: Any) -> tuple[Any, ...]:
    """Shapes of all tensors in nested arguments."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return tuple((name, _shapes(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_shapes, value))
    return ()
