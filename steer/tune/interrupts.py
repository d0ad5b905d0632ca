"""How a run is asked to stop, and what it says when it did."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Stopped(KeyboardInterrupt):
    """The run was interrupted.

    Attributes:
        step: Updates made.
        checkpoint: Where the run continues from.
    """

    def __init__(self, step: int, checkpoint: Path) -> None:
        super().__init__(f"interrupted after step {step}; continues from {checkpoint}")
        self.step, self.checkpoint = step, checkpoint


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that gets SIGINT's or SIGTERM's number instead of the process its death.

    A second signal interrupts at once. Outside the main thread, which alone gets signals, the list
    stays empty.
    """
    requests: list[int] = []

    def note(number: int, frame: Any) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield requests
        return
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
