"""What work on other machines costs: requests and tokens, told to whoever waits for the answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from threading import Lock


@dataclass
class Spent:
    """What was asked of servers.

    Attributes:
        requests: Answers that the servers gave.
        reused: Scores that were known already.
        prompt_tokens: Tokens read, images among them, as the servers count them.
        completion_tokens: Tokens written.
    """

    requests: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: Spent) -> None:
        """Add what another one counts."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)


_bills: ContextVar[tuple[Spent, ...]] = ContextVar("steer_bills", default=())
_writing = Lock()


@contextmanager
def billing() -> Iterator[Spent]:
    """Counts what `bill` is told inside, in threads too that run in a copy of this context."""
    found = Spent()
    token = _bills.set((*_bills.get(), found))
    try:
        yield found
    finally:
        _bills.reset(token)


def bill(spent: Spent, *others: Spent) -> None:
    """Add to every bill that is open, and to others."""
    with _writing:
        for open_one in (*_bills.get(), *others):
            open_one.add(spent)
