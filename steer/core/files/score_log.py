"""Scores on disk: a log that every score goes into at once, and the tables made from it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from steer.core.errors import RecordError
from steer.core.files.atomic import write_atomic
from steer.core.files.folder import lock
from steer.core.files.tables import write_table


FORMAT = "steer-scores/1"
SUFFIX = ".scores.jsonl"
DEFAULT = "scores.jsonl"


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


_HEADER = _line({"format": FORMAT})


class Key(NamedTuple):
    """What a score depends on; equal keys have one score.

    Attributes:
        path: The image's absolute path.
        stamp: Its size and modification time.
        prompt: What it was scored against.
        reward: The reward's name.
        setup: The version of steer, the precision, and the checkpoint with its stamp.
    """

    path: str
    stamp: str
    prompt: str
    reward: str
    setup: str


@dataclass(frozen=True)
class Row:
    """One image with its scores; a score that is missing is None."""

    path: str
    prompt: str
    scores: Mapping[str, float | None]


class ScoreLog:
    """A JSONL file of scores: a line each, appended batch by batch, valid at every moment.

    A line that an interruption left unfinished is dropped. The file is made by the first `add`.

    Args:
        path: Where it is, or will be.

    Raises:
        RecordError: The file is something else, or its folder does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scores: dict[Key, float] = {}
        self._whole = 0
        if not path.parent.is_dir():
            raise RecordError(f"{str(path.parent)!r}: no such folder; make it, or name another")
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, key: Key) -> float | None:
        """The score under `key`, or None."""
        return self._scores.get(key)

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Keep the file open for `add`, and other processes out of it.

        Raises:
            RecordError: Another process scores into it.
        """
        self._file = self.path.open("ab", buffering=0)
        try:
            lock(self._file, repr(str(self.path)))
            self._read()  # what another process has added meanwhile
            self._file.truncate(self._whole)
            if not self._whole:
                self._file.write(_HEADER)
            yield
        finally:
            self._file.close()

    def add(self, scores: Mapping[Key, float]) -> None:
        """Append scores, all of them finite, in one write."""
        self._file.write(b"".join(_line({**k._asdict(), "score": v}) for k, v in scores.items()))
        self._scores.update(scores)

    def _read(self) -> None:
        data = self.path.read_bytes()
        self._whole = data.rfind(b"\n") + 1
        lines = data[: self._whole].splitlines()
        if not lines and not _HEADER.startswith(data):
            raise self._foreign()
        try:
            head, *rest = [json.loads(line) for line in lines] or [{"format": FORMAT}]
            if head.get("format") != FORMAT:
                raise self._foreign()
            for entry in rest:
                key = Key(*(str(entry[name]) for name in Key._fields))
                self._scores[key] = float(entry["score"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._foreign() from error

    def _foreign(self) -> RecordError:
        return RecordError(
            f"{str(self.path)!r}: exists, and is not a {FORMAT} file or is damaged; move it away, "
            "or name another --csv or --json"
        )


def log_path(csv_file: Path | None, json_file: Path | None) -> Path:
    """Where the log goes: beside the table, or `scores.jsonl` in the working directory."""
    table = csv_file or json_file
    return table.with_name(table.stem + SUFFIX) if table is not None else Path(DEFAULT)


def rank_rows(rows: Sequence[Row], reward: str) -> list[Row]:
    """The rows by one reward, best first; those without its score come last."""

    def place(row: Row) -> float:
        score = row.scores[reward]
        return -math.inf if score is None else score

    return sorted(rows, key=place, reverse=True)


def mean_scores(rows: Sequence[Row], rewards: Iterable[str]) -> dict[str, float | None]:
    """The mean of each reward over the rows that have it; None where none has."""
    found = {}
    for name in rewards:
        scores = [s for row in rows if (s := row.scores[name]) is not None]
        found[name] = math.fsum(scores) / len(scores) if scores else None
    return found


def score_text(value: float | None) -> str:
    """A score with four digits after the point, a real minus sign, and a dash for none."""
    if value is None:
        return "–"
    text = f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def write_csv(path: Path, rows: Sequence[Row], rewards: Sequence[str]) -> None:
    """Put `path, prompt, <reward>, ...` at `path`, a row per image, in one step."""
    write_table(path, _records(rows, rewards), ["path", "prompt", *rewards])


def write_json_rows(path: Path, rows: Sequence[Row], rewards: Sequence[str]) -> None:
    """Put a list of `{"path", "prompt", <reward>, ...}` at `path`, one per image, in one step."""
    text = json.dumps(_records(rows, rewards), ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(path, text.encode(errors="surrogateescape") + b"\n")


def _records(rows: Sequence[Row], rewards: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"path": row.path, "prompt": row.prompt, **{r: row.scores[r] for r in rewards}}
        for row in rows
    ]


def stamp_path(path: str) -> str:
    """A checkpoint's absolute path with its size and time, so that another content is another one.

    Of a folder, the size of all its files and the time of the last.
    """
    full = Path(path).expanduser().absolute()
    files = [f for f in full.rglob("*") if f.is_file()] if full.is_dir() else [full]
    found = [os.stat(f) for f in files]
    size, last = sum(s.st_size for s in found), max((s.st_mtime_ns for s in found), default=0)
    return f"{full}@{size}-{last}"
