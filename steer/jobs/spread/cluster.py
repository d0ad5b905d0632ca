"""A Ray cluster by its address: the one that runs already, or one of this machine alone."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from steer.core.checks import require_extra
from steer.core.errors import first_line


AUTO, LOCAL = "auto", "local"
_PATIENCE = 5.0  # seconds until an address counts as wrong
_WAYS = "write auto (the cluster that runs here), HOST:PORT, or local (this machine alone)"


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        address: As it was given.
        workers: How many workers a job has at most; None is one for every GPU, or every CPU core
            where the cluster has no GPU.
    """

    address: str
    workers: int | None = None

    def resources(self, device: str) -> dict[str, float]:
        """What one worker takes of the cluster: a GPU where there is one, else a CPU core.

        Raises:
            ValueError: A device that the cluster has not, or one by its number.
        """
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"device={device!r}: every worker has one device, which Ray gives it; write auto, "
                "cuda or cpu"
            )
        gpus = self._count("GPU")
        if device == "cuda" and not gpus:
            raise ValueError(f"device='cuda': the cluster {self.address!r} has no GPU; write cpu")
        return {"num_gpus": 1, "num_cpus": 1} if gpus and device != "cpu" else {"num_cpus": 1}

    def size(self, device: str) -> int:
        """How many workers a job has at most; ValueError where the cluster has room for none."""
        kind = "GPU" if "num_gpus" in self.resources(device) else "CPU"
        room = self._count(kind)
        if not room:
            raise ValueError(f"--ray {self.address!r}: the cluster has no {kind} to work on")
        return self.workers or room

    def _count(self, kind: str) -> int:
        import ray

        return int(ray.cluster_resources().get(kind, 0))


@contextmanager
def connected(address: str | None, workers: int | None = None) -> Iterator[Cluster | None]:
    """The cluster at an address, for a while; None without one, for work in this process.

    Where this process is connected already, that cluster is taken, and stays connected.

    Args:
        address: `"auto"` (the cluster that runs on this machine or that `RAY_ADDRESS` names),
            `"local"` (one that is started here and stopped at the end), or `"HOST:PORT"`.
        workers: How many workers a job has at most; None is one for every GPU, or CPU core.

    Raises:
        ValueError: No cluster there, or `workers` without an address or below 1.
        ImportError: Ray is not installed.
    """
    if workers is not None and (address is None or workers < 1):
        way = "needs --ray" if address is None else "must be at least 1"
        raise ValueError(f"--workers {workers}: {way}")
    if address is None:
        yield None
        return
    require_extra("ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield Cluster(address, workers)
        return
    _connect(address)
    try:
        yield Cluster(address, workers)
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    """Connect, and leave signals as they are: an interrupt stays one."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    _check_address(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address == LOCAL:
            ray.init(address=LOCAL, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (Exception, SystemExit) as error:  # a plain Exception where nothing starts in time
        why = first_line(error) if isinstance(error, Exception) else "no answer"
        raise ValueError(f"--ray {address!r}: no cluster there ({why}); {_WAYS}") from error
    finally:
        with suppress(ValueError):  # outside the main thread
            signal.signal(signal.SIGTERM, before)


def _check_address(address: str) -> None:
    """ValueError for an address that nobody answers at: Ray itself would wait for minutes."""
    if address in (AUTO, LOCAL):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal() or int(port) > 65535:
        raise ValueError(
            f"--ray {address!r}: not an address; {_WAYS}. For ray:// run the command on a machine "
            "of the cluster (ray job submit -- steer ...)"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"--ray {address!r}: nobody answers there ({why}); {_WAYS}") from error
