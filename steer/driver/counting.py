"""The loop's number: pipelines count their iterations, and a search makes them in another order.

`for i, t in enumerate(timesteps)` is how nearly every loop of diffusers is written, and what it
looks up by `i` (ControlNet weights, skip-layer windows, `timesteps[i + 1]`, `sigmas[i]`, the number
that callbacks are told) belongs to the step that is evaluated. So for the time of a call the name
`enumerate` in the pipeline's modules is one that gives a query's own step index. It is the builtin
for everything else.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from types import ModuleType
from typing import Any, Protocol

from steer.driver.facts import loop_classes


class Counts(Protocol):
    """A running loop that knows the number of the iteration that an item belongs to."""

    def number(self, item: Any, start: int) -> int | None:
        """The loop's number, counted from `start`, while `item` is its newest timestep.

        `None` for what it did not give out.
        """


running: ContextVar[Counts | None] = ContextVar("running", default=None)
"""The loop that gives out timesteps in this thread."""

_lock = Lock()
_users: dict[str, int] = {}


def count(iterable: Iterable[Any], start: int = 0) -> Iterator[tuple[int, Any]]:
    """`enumerate`, with the loop's own numbers for the timesteps of a search."""
    for place, item in builtins.enumerate(iterable, start):
        loop = running.get()
        number = None if loop is None else loop.number(item, start)
        yield (place if number is None else number), item


@contextmanager
def counting(pipe: Any) -> Iterator[None]:
    """`enumerate` is `count` in the pipeline's modules for a while; calls may overlap."""
    modules = _modules(pipe)
    with _lock:
        for module in modules:
            users = _users.get(module.__name__, 0)
            if users or "enumerate" not in vars(module):
                _users[module.__name__] = users + 1
                vars(module)["enumerate"] = count
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                _leave(module)


def _leave(module: ModuleType) -> None:
    users = _users.pop(module.__name__, 0) - 1
    if users > 0:
        _users[module.__name__] = users
    elif users == 0:
        vars(module).pop("enumerate", None)


def _modules(pipe: Any) -> list[ModuleType]:
    """The modules of the loop's classes and their bases, without Python's own."""
    bases = (base for kind in loop_classes(pipe) for base in kind.__mro__)
    names = dict.fromkeys(base.__module__ for base in bases)
    found = [sys.modules.get(name) for name in names if name not in ("builtins", "abc", "typing")]
    return [module for module in found if module is not None]


class Number(int):
    """A loop's number that moves on when the pipeline has called `step`.

    An inpainting pipeline ends an iteration with `if i < len(timesteps) - 1`, `timesteps[i + 1]`:
    it edits what `step` returned, and that is the latents of the next query, at another place of
    the grid. So what is computed from this number after `step` is computed from the number of the
    step before that place. As a plain integer (an index, text) it stays what it was.
    """

    now: Callable[[], int]

    @staticmethod
    def of(number: int, now: Callable[[], int]) -> Number:
        """`number`, computed with as `now()`."""
        made = Number(number)
        made.now = now
        return made

    def __lt__(self, other: int) -> bool:
        return self.now() < other

    def __le__(self, other: int) -> bool:
        return self.now() <= other

    def __gt__(self, other: int) -> bool:
        return self.now() > other

    def __ge__(self, other: int) -> bool:
        return self.now() >= other

    def __eq__(self, other: object) -> bool:
        return self.now() == other

    def __ne__(self, other: object) -> bool:
        return self.now() != other

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __add__(self, other: int) -> int:
        return self.now() + other

    __radd__ = __add__

    def __sub__(self, other: int) -> int:
        return self.now() - other
