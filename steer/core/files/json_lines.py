"""A file that grows by a JSON object per line: whole after a kill, at the cost of its last line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steer.core.files.text import read_json


class JsonLines:
    """A file with a head and then an object per line, each on the disk when `append` returns.

    A last line that a kill or a full disk tore does not count, and is cut off by the next `append`.
    Nothing is locked: a file belongs to one process at a time.

    Args:
        path: Where it is; made by the first `append`.
        head: Its first line, which tells it from files of others.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self._head = _line(head)
        self._whole = 0

    def read(self) -> list[Any]:
        """The values after the head; none where there is no file.

        Raises:
            OSError: It cannot be read.
            ValueError: It is another file, or a line is damaged; the message says which.
        """
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        if not self._begins(data):
            raise ValueError("another file, or its first line is damaged")
        self._whole = data.rfind(b"\n") + 1
        lines = data[: self._whole].split(b"\n")[1:-1]
        return [_value(number, line) for number, line in enumerate(lines, 2)]

    def append(self, value: Mapping[str, Any]) -> None:
        """Add a line after the last whole one that `read` found; OSError on a full disk."""
        line = _line(value) if self._whole else self._head + _line(value)
        with self.path.open("ab") as file:
            file.truncate(self._whole)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._whole += len(line)

    def remove(self) -> None:
        """Delete the file, if it is there."""
        self.path.unlink(missing_ok=True)
        self._whole = 0

    def is_own(self) -> bool:
        """Whether there is a file with the head, or torn within it."""
        if not self.path.is_file():
            return False
        with self.path.open("rb") as file:
            return self._begins(file.read(len(self._head)))

    def _begins(self, data: bytes) -> bool:
        return data.startswith(self._head) or self._head.startswith(data)


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _value(number: int, line: bytes) -> Any:
    try:
        return read_json(line)
    except ValueError as error:
        raise ValueError(f"line {number} is damaged: {error}") from error
