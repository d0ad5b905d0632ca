"""Pilot records on disk: a line for each prompt and kind, so that nothing paid is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from steer.core.errors import RecordError
from steer.core.files.atomic import plain
from steer.core.files.folder import lock
from steer.core.files.text import read_json


FORMAT = "steer-pilots/1"


class Records:
    """What the pilots of each prompt and kind came to, in memory and, given a path, on disk.

    A line that an interruption left unfinished is dropped.

    Args:
        about: What the pilots depend on, JSON-ready; a file must have been made with the same.
        path: A `.jsonl` file, made where it is not there; None keeps records in memory.

    Raises:
        RecordError: The file is something else, or of other pilots.
    """

    def __init__(self, about: Mapping[str, Any], path: Path | None = None) -> None:
        self.about, self.path = plain(about), path
        self._units: dict[tuple[int, str], dict[str, Any]] = {}
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._units)

    def get(self, prompt: int, kind: str) -> dict[str, Any] | None:
        """The record of a prompt's pilots of a kind, if there is one."""
        return self._units.get((prompt, kind))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind, prompt by prompt."""
        return [unit for (_, name), unit in sorted(self._units.items()) if name == kind]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep the file open for `add`, and other processes out of it.

        Raises:
            RecordError: Another process writes into it, or see `Records`.
            OSError: It cannot be written.
        """
        if self.path is None:
            yield
            return
        with self.path.open("ab", buffering=0) as file:
            lock(file, repr(str(self.path)))
            whole = self._read(self.path)
            file.truncate(whole)
            self._file = file
            if not whole:
                file.write(_line({"format": FORMAT, **self.about}))
            try:
                yield
            finally:
                self._file = None

    def add(self, prompt: int, kind: str, found: Mapping[str, Any]) -> None:
        """Keep a record."""
        unit = plain({"prompt": prompt, "kind": kind, **found})
        if self._file is not None:
            self._file.write(_line(unit))
        self._units[prompt, kind] = unit

    def _read(self, path: Path) -> int:
        """Take in the file's whole lines; how many bytes they are."""
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].split(b"\n")[:-1]
        if not lines:
            if data and not _line({"format": FORMAT}).startswith(data[:20]):
                raise self._foreign("it holds something else")
            return 0
        try:
            head, *units = [read_json(line) for line in lines]
            self._check(head)
            self._units = {(int(u["prompt"]), str(u["kind"])): u for u in units}
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, RecordError):
                raise
            raise self._foreign(str(error)) from error
        return whole

    def _check(self, head: Any) -> None:
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise self._foreign(f"not a {FORMAT} file")
        for name, value in self.about.items():
            if head.get(name) != value:
                raise RecordError(
                    f"pilots file {str(self.path)!r}: was made with {name}={_short(head.get(name))}"
                    f", and this calibration has {name}={_short(value)}; use the same, or another "
                    "file"
                )

    def _foreign(self, why: str) -> RecordError:
        return RecordError(
            f"pilots file {str(self.path)!r}: cannot be continued ({why}); move it away, or name "
            "another"
        )


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
