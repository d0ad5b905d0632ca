"""Scores that were paid for, kept: in memory, and on the disk where a folder is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from steer.core.files.atomic import write_json


class Answers:
    """Scores by key. Every answer is a file of its own, written in one step: what was kept before
    a kill is there afterwards, and several processes may share a folder.

    Args:
        folder: Where they lie; None keeps them in memory only.

    Raises:
        ValueError: The folder cannot be made.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self._known: dict[str, float] = {}
        try:
            if self.folder:
                self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"cache={str(folder)!r}: not a folder that can be made ({error.strerror}); name "
                "another"
            ) from error

    def get(self, key: str) -> float | None:
        """The score of a key; None where there is none, or its file is damaged."""
        if key not in self._known and self.folder:
            try:
                score = json.loads(self._file(key).read_bytes())["score"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                return None
            if not isinstance(score, float | int) or not 0 <= score <= 1:
                return None
            self._known[key] = float(score)
        return self._known.get(key)

    def put(self, key: str, score: float, **facts: Any) -> None:
        """Keep a score in [0, 1]; with `facts` beside it, for people."""
        self._known[key] = score
        if self.folder:
            file = self._file(key)
            file.parent.mkdir(exist_ok=True)
            write_json(file, {"score": score, **facts})

    def _file(self, key: str) -> Path:
        assert self.folder
        return self.folder / key[:2] / f"{key}.json"


def answer_key(pixels: bytes, **facts: Any) -> str:
    """The SHA-256 of an image's pixels and of what was asked about it, in hexadecimal."""
    asked = json.dumps(facts, sort_keys=True).encode()
    return hashlib.sha256(hashlib.sha256(asked).digest() + pixels).hexdigest()
