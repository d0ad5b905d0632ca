"""How the command ends: exit codes, and errors of the user's input in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def fail(message: object) -> typer.Exit:
    """Say what is wrong in one line on stderr; the caller raises what it gets."""
    typer.echo(f"steer: {' '.join(str(message).split())}", err=True)
    return typer.Exit(BAD_INPUT)


@contextmanager
def bad_input() -> Iterator[None]:
    """Turn an error of the user's input into one line and exit code 2."""
    from steer.core.errors import SteerError

    try:
        yield
    except (SteerError, ValueError, OSError, ImportError) as error:
        raise fail(error) from error
