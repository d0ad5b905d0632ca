"""A folder that a command writes: held by one process, and without files of somebody else's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from steer.core.errors import RecordError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".steer.lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder` for a while; made where it is not there.

    The lock is the operating system's: it ends with the process, however that ends. Temporary files
    that a killed process left are removed. Where a file system knows no locks there is none.

    Raises:
        RecordError: Another process works in the folder.
        OSError: It cannot be written.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with ExitStack() as stack:
        if new:
            stack.callback(_tidy, folder)
        file = stack.enter_context(path.open("ab"))
        lock(file, repr(str(folder)))
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise _busy(repr(str(folder)))  # it was removed by the process that had it
        for left in (*folder.glob(".*.tmp"), *folder.glob("*/.*.png.????????.tmp")):
            if left.is_file():
                with suppress(OSError):
                    left.unlink()
        yield


def lock(file: BinaryIO, name: str) -> None:
    """Lock an open file until it is closed; RecordError where another process has it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(name) from None
    except OSError:  # a file system without locks
        return


def _busy(name: str) -> RecordError:
    return RecordError(
        f"{name}: another process is writing here; wait for it to end, or name another"
    )


def _tidy(folder: Path) -> None:
    """Remove a new folder into which nothing was written."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def check_free(folder: Path, names: Iterable[str], command: str) -> None:
    """Raise RecordError where one of `names` is in `folder` already."""
    taken = next((name for name in names if os.path.lexists(folder / name)), None)
    if taken is not None:
        raise RecordError(
            f"--out {str(folder)!r}: holds {taken!r}, which {command} did not write and would "
            "replace; name another folder, or move it away"
        )
