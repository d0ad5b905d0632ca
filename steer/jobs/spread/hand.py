"""The far end: one worker in a process of a cluster."""

from __future__ import annotations

import os
import pickle
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from steer.core.files.versions import versions
from steer.jobs.spread.worker import Worker


class Hand:
    """A worker inside an actor of Ray. The cluster's side is `Pool`.

    Args:
        make: A pickled function that loads and returns the worker.
        folder: The job's working directory, entered where this machine has it, so that paths mean
            here what they mean there.
    """

    def __init__(self, make: bytes, folder: str) -> None:
        self._make = make
        self._worker: Worker[Any, Any] | None = None
        with suppress(OSError):
            os.chdir(folder)

    def load(self) -> tuple[Any, dict[str, str], str, list[str]]:
        """What the job has to know, versions of packages, this machine's name, and warnings."""
        with _warnings() as told:
            made: Worker[Any, Any] = pickle.loads(self._make)()
        self._worker = made
        return made.about, versions(), platform.node(), told

    def work(self, unit: Any) -> tuple[Any, list[str]]:
        """A unit's result, and what was warned of meanwhile."""
        assert self._worker is not None, "load comes first"
        with _warnings() as told:
            result = self._worker.work(unit)
        return result, told


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The warnings of a while, each once, when it is over."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield told
    told += dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning)
