"""How the command ends: exit codes, and errors of the user's input in one line."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from steer.core.files.names import visible


FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def end_as_interrupted() -> None:
    """From now on SIGTERM is what Ctrl-C is; outside the main thread it stays what it was."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with suppress(ValueError):
        signal.signal(signal.SIGTERM, interrupt)


def fail(message: object) -> typer.Exit:
    """Say what is wrong in one line on stderr; the caller raises what it gets."""
    typer.echo(f"steer: {visible(' '.join(str(message).split()))}", err=True)
    return typer.Exit(BAD_INPUT)


@contextmanager
def bad_input() -> Iterator[None]:
    """Turn an error of the user's input into one line and exit code 2; an interrupt into 130."""
    from steer.core.errors import SteerError

    try:
        yield
    except KeyboardInterrupt:
        typer.echo("steer: interrupted; the same command continues", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        raise fail(_told(error)) from error
    except (SteerError, ValueError, ImportError) as error:
        raise fail(error) from error


def _told(error: OSError) -> str:
    """An error of the disk in one sentence, with its way out."""
    name = f"{error.filename!r}: " if error.filename else ""
    if error.errno in _FULL:
        return (
            f"{name}the disk is full; what is finished is kept: free some space, and the same "
            "command continues"
        )
    return f"{name}{error.strerror}" if error.strerror else str(error)
