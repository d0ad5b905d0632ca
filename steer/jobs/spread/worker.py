"""What does a job's units of work, whether in this process or in another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar


Unit = TypeVar("Unit")
Result = TypeVar("Result")


class Crew(ABC, Generic[Unit, Result]):
    """Whoever does a job's units: one worker in this process, or several in a cluster."""

    about: Any = None
    """What the job has to know of what is loaded."""

    @abstractmethod
    def work_all(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, Result]]:
        """Do units, and yield each with its result, in the order of the units."""

    def close(self) -> None:
        """Put back what was changed, and let go of everything; nothing is done afterwards."""


class Worker(Crew[Unit, Result]):
    """Has pipeline and rewards, loaded once, and does a job's units with them.

    A result depends on its unit alone: not on what was done before, nor on who does it. That is
    what makes results equal for any number of workers. For a cluster a worker is made from names
    and paths, and its units, results and `about` can be pickled.
    """

    @abstractmethod
    def work(self, unit: Unit) -> Result:
        """Do one unit."""

    def work_all(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, Result]]:
        """Do units one after the other, and yield each with its result."""
        for unit in units:
            yield unit, self.work(unit)
