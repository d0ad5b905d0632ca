"""A cluster within this process: Ray's part in `steer.jobs.spread.pool`, and nothing is started.

    monkeypatch.setattr(pool, "ray", RayHere())

Whatever would travel is pickled and read again. What was begun last is done first, so results come
in another order than units were given out. Nothing runs at the same time, and no worker dies: the
tests on a real cluster have that.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from ray import cloudpickle


def sent(value: Any) -> Any:
    """What arrives of a value in another process."""
    return pickle.loads(cloudpickle.dumps(value))


class Ref:
    """A result to be: done when it is asked for, by the very worker."""

    def __init__(self, do: Callable[[], Any]) -> None:
        self.do = do


class _Call:
    def __init__(self, actor: Callable[[], Any], name: str) -> None:
        self.actor, self.name = actor, name

    def remote(self, *given: Any) -> Ref:
        arrived = sent(given)
        return Ref(lambda: sent(getattr(self.actor(), self.name)(*arrived)))


class _Actor:
    def __init__(self, kind: Any, *given: Any) -> None:
        made = kind(*sent(given))
        self.load, self.work = _Call(lambda: made, "load"), _Call(lambda: made, "work")


class _Kind:
    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def options(self, **_: Any) -> _Kind:
        return self

    def remote(self, *given: Any) -> _Actor:
        return _Actor(self.kind, *given)


class RayHere:
    """What `pool` asks of the module `ray`."""

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: Any) -> _Kind:
        return _Kind(kind)

    def wait(self, refs: Sequence[Ref], num_returns: int = 1) -> tuple[list[Ref], list[Ref]]:
        turned = list(reversed(refs))
        return turned[:num_returns], turned[num_returns:]

    def get(self, ref: Ref, timeout: float | None = None) -> Any:
        return ref.do()

    def kill(self, actor: _Actor) -> None:
        pass
