"""What training appends to and continues from: logs with a JSON line per step, and states."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from steer.core.errors import TuneError, first_line
from steer.core.files.atomic import write_atomic
from steer.core.files.text import read_json


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row, in one write."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps(row).encode() + b"\n")


def trim_log(path: Path, step: int, first: int = 1) -> None:
    """Drop rows of steps that will be made again, and a line that a full disk or a kill tore.

    Args:
        path: The log; nothing is done where there is none.
        step: Steps made; 0 empties the log.
        first: What the first step is called.

    Raises:
        TuneError: A line within is damaged.
    """
    if not path.is_file():
        return
    text = path.read_bytes()
    kept = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), 1):
        try:
            place = read_json(line)["step"]
        except (ValueError, TypeError, KeyError) as error:
            raise TuneError(
                f"{str(path)!r}: line {number} is damaged; move the file away to continue with a "
                "new log"
            ) from error
        if step and place < step + first:
            kept.append(line + b"\n")
    write_atomic(path, b"".join(kept))


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """`torch.save`, on the disk when it returns; OSError where it cannot be written."""
    with path.open("wb") as file:
        try:
            torch.save(dict(state), file)
            file.flush()
        except RuntimeError as error:  # what torch makes of a write that failed
            cause = error.__context__ if isinstance(error.__context__, OSError) else None
            code = cause.errno if cause is not None else errno.EIO
            raise OSError(code, f"cannot be written ({first_line(error)})", str(path)) from error
        os.fsync(file.fileno())
