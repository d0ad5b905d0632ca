"""Who does a job's units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from steer.jobs.device import usable_device
from steer.jobs.spread.cluster import Cluster
from steer.jobs.spread.worker import Crew, Result, Unit, Worker


@contextmanager
def crew(
    make: Callable[[], Worker[Unit, Result]],
    cluster: Cluster | None = None,
    *,
    device: str = "auto",
    units: int = 1,
) -> Iterator[Crew[Unit, Result]]:
    """One worker in this process, or those of a cluster, for a while.

    Args:
        make: Loads a worker; for a cluster it is pickled, so it holds names and paths.
        cluster: Where, if not here.
        device: That of the job.
        units: How many units there are, at most: there are no more workers.

    Raises:
        ValueError: `make` cannot be sent, or a device that the cluster has not.
        WorkersError: Workers are lost while they load, or have other versions of packages.
        Exception: Whatever loading a worker raises.
    """
    if cluster is None:
        found: Crew[Unit, Result] = make()
    else:
        from steer.jobs.spread.pool import Pool

        found = Pool(make, cluster, device, units)
    try:
        yield found
    finally:
        found.close()


def check_place(cluster: Cluster | None, device: str, **live: object) -> None:
    """See that a job can work where it is asked to, before anything is loaded.

    Args:
        cluster: Where, if not here.
        device: That of the job.
        **live: Objects that the caller has loaded, by name, where there are any.

    Raises:
        ValueError: A device that is not there; live objects where workers are to load their own.
    """
    if cluster is None:
        usable_device(device)
        return
    cluster.resources(device)
    name = next((name for name, value in live.items() if value is not None), None)
    if name is not None:
        raise ValueError(
            f"{name}={type(live[name]).__name__}: workers of a cluster load their own: name it in "
            f"the configuration and leave {name} out"
        )
