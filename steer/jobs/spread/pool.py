"""Workers in a Ray cluster: units out, results back in order, lost workers replaced."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray import exceptions

from steer.core.errors import WorkersError, first_line
from steer.core.files.versions import versions
from steer.core.warn import warn
from steer.jobs.spread.cluster import Cluster
from steer.jobs.spread.hand import Hand
from steer.jobs.spread.worker import Crew, Result, Unit, Worker


MOST_LOSSES = 3
"""Workers that one unit may cost, or that may be lost in a row while they load."""

_AHEAD = 8
_SAME = ("python", "steer", "torch", "diffusers", "transformers")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
_LOST = (
    exceptions.RayActorError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
)


class Pool(Crew[Unit, Result]):
    """The workers of one job in a cluster.

    A worker that is lost (killed, out of memory, its machine gone) is replaced, and its unit is
    given to another one. Results wait here until all before them are there, so that whoever reads
    them reads them in order; workers run ahead of the oldest missing one by a bounded number.

    Args:
        make: Loads a worker; it is sent to the cluster, so it holds names and paths.
        cluster: Where.
        device: That of the job: `"auto"`, `"cpu"` or `"cuda"`.
        units: How many units there are, at most.

    Raises:
        ValueError: `make` cannot be sent, or a device that the cluster has not.
        WorkersError: Workers are lost while they load, or have other versions of packages.
        Exception: Whatever loading a worker raises.
    """

    def __init__(
        self, make: Callable[[], Worker[Unit, Result]], cluster: Cluster, device: str, units: int
    ) -> None:
        self._make = ray.put(_sent(make))
        self._kind: Any = ray.remote(Hand).options(
            **cluster.resources(device), runtime_env={"env_vars": _ENVIRONMENT}
        )
        self._loading: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[Any, int, Unit]] = {}
        self._idle: list[Any] = []
        self._losses: Counter[int | None] = Counter()
        self._untold = True
        count = max(1, min(cluster.size(device), units))
        self._ahead = _AHEAD * count
        for _ in range(count):
            self._start()
        try:
            while not self._idle:
                self._wait()
        except BaseException:
            self.close()
            raise

    def work_all(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, Result]]:
        """Do units, and yield each with its result, in their order.

        After an error, units that are at work are finished, and all results that are there come
        first, with gaps; then it is raised. After an interrupt nothing is waited for.

        Raises:
            WorkersError: A unit has cost three workers.
            Exception: What doing a unit raises.
        """
        waiting = enumerate(units)
        again: deque[tuple[int, Unit]] = deque()
        done: dict[int, tuple[Unit, Result]] = {}
        due, more = 0, True
        try:
            while True:
                while due in done:
                    yield done.pop(due)
                    due += 1
                while self._idle and (again or more):
                    if not again and (following := next(waiting, None)) is not None:
                        again.append(following)
                    if not again:
                        more = False
                    elif again[0][0] - due >= self._ahead:
                        break
                    else:
                        self._give(*again.popleft())
                if not (self._busy or again or more):
                    return
                for number, unit, result in self._wait():
                    if result is None:
                        again.appendleft((number, unit))
                    else:
                        done[number] = unit, result[0]
        except (KeyboardInterrupt, Exception) as error:
            if not isinstance(error, KeyboardInterrupt):
                done.update(self._finish())
            self.close()
            yield from (done[number] for number in sorted(done))
            raise

    def _finish(self) -> dict[int, tuple[Unit, Result]]:
        """The results of the units that are at work; an interrupt ends the wait."""
        done: dict[int, tuple[Unit, Result]] = {}
        with suppress(KeyboardInterrupt):
            if self._busy:
                ray.wait([*self._busy], num_returns=len(self._busy))
        for ref, (_, number, unit) in self._busy.items():
            with suppress(Exception):  # it fails as well, is lost, or has not ended
                result, told = ray.get(ref, timeout=0)
                done[number] = unit, result
                _tell(told)
        return done

    def close(self) -> None:
        """Stop all workers, whatever they do."""
        busy = [hand for hand, _, _ in self._busy.values()]
        for hand in [*self._loading.values(), *busy, *self._idle]:
            with suppress(Exception):  # it is gone, or the cluster is
                ray.kill(hand)
        self._loading, self._busy, self._idle = {}, {}, []

    def _start(self) -> None:
        hand = self._kind.remote(self._make, os.getcwd())
        self._loading[hand.load.remote()] = hand

    def _give(self, number: int, unit: Unit) -> None:
        hand = self._idle.pop()
        self._busy[hand.work.remote(unit)] = hand, number, unit

    def _wait(self) -> list[tuple[int, Unit, tuple[Result] | None]]:
        """Wait until a worker has loaded, or has done its unit; a lost one has no result."""
        ready, _ = ray.wait([*self._busy, *self._loading], num_returns=1)
        if ready[0] in self._loading:
            self._loaded(ready[0])
            return []
        return [self._done(ready[0])]

    def _loaded(self, ref: Any) -> None:
        hand = self._loading.pop(ref)
        try:
            with _own_errors():
                about, found, machine, told = ray.get(ref)
        except _LOST as error:
            self._lose(hand, None, "to load what the job needs", error)
            return
        _check_versions(found, machine)
        if self._untold:
            self.about, self._untold = about, False
            _tell(told)
        self._losses[None] = 0
        self._idle.append(hand)

    def _done(self, ref: Any) -> tuple[int, Unit, tuple[Result] | None]:
        hand, number, unit = self._busy.pop(ref)
        try:
            with _own_errors():
                result, told = ray.get(ref)
        except _LOST as error:
            self._lose(hand, number, str(unit), error)
            return number, unit, None
        self._idle.append(hand)
        _tell(told)
        return number, unit, (result,)

    def _lose(self, hand: Any, number: int | None, what: str, error: Exception) -> None:
        """Put another worker in the place of one that is gone, unless that goes on and on."""
        with suppress(Exception):
            ray.kill(hand)
        self._losses[number] += 1
        if self._losses[number] >= MOST_LOSSES:
            raise WorkersError(
                f"{what}: cost {MOST_LOSSES} workers ({first_line(error)}); run it without --ray "
                "to see why, or with fewer --workers where memory is short"
            ) from error
        self._start()


@contextmanager
def _own_errors() -> Iterator[None]:
    """What a worker raised is raised here, as if it had been raised in this process."""
    try:
        yield
    except exceptions.RayTaskError as error:
        if isinstance(error, _LOST) or not isinstance(error.cause, Exception):
            raise
        raise error.cause from error


def _tell(messages: list[str]) -> None:
    """Warn here of what a worker warned of."""
    for message in messages:
        warn(message)


def _sent(make: Callable[[], Any]) -> bytes:
    from ray import cloudpickle

    try:
        return cloudpickle.dumps(make)
    except Exception as error:  # whatever an object's own pickling raises
        raise ValueError(
            f"--ray: the job holds an object that cannot be sent to workers ({first_line(error)}): "
            "name pipelines and rewards, and let the workers load them"
        ) from error


def _check_versions(found: dict[str, str], machine: str) -> None:
    """WorkersError where a worker's packages are others than this process's."""
    here = versions()
    for name in _SAME:
        if found.get(name) != here.get(name):
            raise WorkersError(
                f"the worker on {machine} has {name} {found.get(name)}, and here is "
                f"{here.get(name)}: results would depend on who draws them; install the same"
            )
