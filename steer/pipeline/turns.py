"""Turns: one guided call at a time on a pipeline, whatever thread it comes from.

During a call a search stands in `pipe.scheduler`, and LoRAs around the denoiser's layers: two calls
at once would each see the other's. So a second thread waits for its turn, also with another
pipeline that shares a model or a tokenizer. A call from inside a call, which would wait for
itself, is refused.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from threading import Lock
from typing import Any

from steer.core.errors import SteerError, in_a_call
from steer.driver.facts import first_denoiser


class _Turn:
    """A call under way: what it holds, until it is over."""

    def __init__(self, held: dict[int, Any]) -> None:
        self.held, self.over = held, False


_around: ContextVar[tuple[_Turn, ...]] = ContextVar("around", default=())
_locks: dict[int, Lock] = {}
_guard = Lock()


@contextmanager
def turn(pipe: Any) -> Iterator[None]:
    """Wait for the pipeline and its models, and hold them for a while.

    Raises:
        SteerError: From inside a call that holds the pipeline or its denoiser, in this thread or in
            one that was started with this one's context (`asyncio.to_thread`).
    """
    outer = [t for t in _around.get() if not t.over]
    taken = {name for t in outer for name in t.held}
    denoiser = first_denoiser(pipe)
    if id(pipe) in taken or (denoiser is not None and id(denoiser[1]) in taken):
        raise SteerError(in_a_call(type(pipe).__name__))
    things = {id(thing): thing for thing in (pipe, *_parts(pipe)) if id(thing) not in taken}
    mine = _Turn(things)
    with ExitStack() as stack:
        for name in sorted(things):  # in one order everywhere, so that nobody waits in a circle
            stack.enter_context(_lock(name, things[name]))
        token = _around.set((*outer, mine))
        try:
            yield
        finally:
            mine.over = True
            _around.reset(token)


def _parts(pipe: Any) -> list[Any]:
    """Models, tokenizers and the like: what has a state of its own."""
    return [part for part in getattr(pipe, "__dict__", {}).values() if hasattr(part, "__dict__")]


def _lock(name: int, thing: Any) -> Lock:
    """The lock of an object, which lives as long as the object does."""
    with _guard:
        if name not in _locks:
            _locks[name] = Lock()
            with suppress(TypeError):  # not every object can be referred to weakly
                weakref.finalize(thing, _locks.pop, name, None)
        return _locks[name]
