"""One case in a process of its own: a crash, a leak or an endless loop ends with it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.conformance import stubs
from benchmarks.conformance.cases import Case
from benchmarks.conformance.results import Result


Examine = Callable[[Case], Iterable[tuple[str, Result]]]


def results(case: Case, examine: Examine, names: Iterable[str], limit: float) -> dict[str, Result]:
    """The results of `examine(case)`, all `names`, within `limit` seconds.

    What the process did not come to is a test limit, and what it died of a crash.
    """
    context: Any = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(case, examine, sender))
    process.start()
    sender.close()
    found = dict(_received(receiver, time.monotonic() + limit))
    process.join(timeout=1 if len(found) == len(tuple(names)) else 0)
    return found | _missing(process, [name for name in names if name not in found], limit)


def _work(case: Case, examine: Examine, sender: Connection) -> None:
    """Run in the new process: be quiet, stand in for downloads, send what is found."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    stubs.install()
    for name, result in examine(case):
        sender.send((name, result))
    sender.close()


def _received(receiver: Connection, deadline: float) -> Iterator[tuple[str, Result]]:
    while receiver.poll(max(deadline - time.monotonic(), 0)):
        try:
            yield receiver.recv()
        except EOFError:
            return


def _missing(process: Any, names: list[str], limit: float) -> dict[str, Result]:
    """End the process, and say what became of the checks that it did not come to."""
    if process.is_alive():
        process.join(timeout=1)
    late = process.is_alive()
    if late:
        process.kill()
    process.join()
    late = late or process.exitcode == 0  # it ended by itself just after the time
    why = f"not done within {limit:g} s" if late else "the process died before"
    found = {name: Result("test limit", why) for name in names}
    if names and not late:
        found[names[0]] = Result("crash", f"the process ended with code {process.exitcode}")
    return found
