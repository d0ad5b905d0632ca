"""The folder of a comparison: images, a record of each, and scores, all of them checked.

    comparison.json                         what is compared; refuses another configuration
    images/<arm>/00012-s0.png               prompt 12 with seed 0
    records/<arm>/00012-s0.json             its cost, and the image's SHA-256
    scores/<reward>/<arm>/0003.json         block 3 of the arm's images
    results.json  arms.csv  pairs.csv  scores.csv  report.html

Every file is written beside its place and renamed into it, and every JSON file carries its own
digest. A process may be killed at any moment: what is there is whole, and what does not hold its
digest counts as missing and is made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer.core.errors import FolderError
from steer.core.files.atomic import file_sha256, plain, usable, write_json
from steer.core.files.folder import held
from steer.core.files.names import slug
from steer.core.files.png import save_png
from steer.core.files.text import read_json
from steer.core.files.versions import versions


FORMAT = "steer-comparison/1"
SETUP = "comparison.json"
IMAGES, RECORDS, SCORES = "images", "records", "scores"
_SHOWN = 6


@dataclass(frozen=True)
class Unit:
    """One image to be drawn: an arm, a prompt by its index, a seed."""

    arm: str
    prompt: int
    seed: int

    @property
    def name(self) -> str:
        """Its file name without suffix."""
        return f"{self.prompt:05d}-s{self.seed}"


class Store:
    """The folder of one comparison."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._lock: ExitStack | None = None

    def image(self, unit: Unit) -> Path:
        """Where a unit's image lies."""
        return self.folder / IMAGES / unit.arm / f"{unit.name}.png"

    def begin(self, setup: Mapping[str, Any], arms: Sequence[str]) -> None:
        """Take the folder for this comparison, or continue it; one process does so.

        Args:
            setup: What decides the images and scores, JSON-ready.
            arms: Their names.

        Raises:
            FolderError: It holds something else or another configuration (the message shows the
                differences), or cannot be written.
            RecordError: Another process works in it. Until `release`, this one does.
        """
        try:
            usable(self.folder)
        except ValueError as error:
            raise FolderError(str(error)) from error
        with ExitStack() as stack:
            if self._lock is None:
                stack.enter_context(held(self.folder))
            self._begin(setup, arms)
            self._lock = self._lock or stack.pop_all()

    def release(self) -> None:
        """Let other processes into the folder."""
        if self._lock is not None:
            self._lock.close()
        self._lock = None

    def _begin(self, setup: Mapping[str, Any], arms: Sequence[str]) -> None:
        path = self.folder / SETUP
        if path.exists():
            self._same(unseal(path), plain(setup))
        elif self.folder.is_dir() and any(f.name[:1] != "." for f in self.folder.iterdir()):
            raise FolderError(
                f"--out {str(self.folder)!r}: holds files, and no {SETUP}; name an empty folder"
            )
        with disk():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _seal(path, {"format": FORMAT, "setup": setup, "versions": versions()})
            for kind in (IMAGES, RECORDS):
                for arm in arms:
                    (self.folder / kind / arm).mkdir(parents=True, exist_ok=True)
            for stale in self.folder.rglob(".*.tmp"):
                stale.unlink(missing_ok=True)

    def _same(self, found: Mapping[str, Any] | None, setup: Mapping[str, Any]) -> None:
        if found is None or found.get("format") != FORMAT:
            raise FolderError(
                f"--out {str(self.folder)!r}: its {SETUP} is damaged or of another format; name "
                "another folder"
            )
        changes = list(differences(found["setup"], setup))
        if changes:
            shown = "; ".join(changes[:_SHOWN]) + (
                f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
            )
            raise FolderError(
                f"--out {str(self.folder)!r}: holds a comparison with another configuration: "
                f"{shown}; name another folder, or restore the configuration"
            )

    def setup(self) -> dict[str, Any]:
        """What `begin` wrote, versions included; FolderError where there is nothing whole."""
        found = unseal(self.folder / SETUP)
        if found is None:
            raise FolderError(f"--out {str(self.folder)!r}: holds no whole {SETUP}")
        return found

    def put(self, unit: Unit, image: Any, data: Mapping[str, Any], record: Any) -> None:
        """Store an image, with `data` inside, and then its record.

        Raises:
            FolderError: The disk is full or cannot be written.
        """
        with disk():
            path = self.image(unit)
            save_png(path, image, data)
            sealed = {**record, "image_sha256": file_sha256(path)}
            _seal(self._record(unit), sealed)

    def record(self, unit: Unit) -> dict[str, Any] | None:
        """A unit's record; None where it has none, or its image is not the recorded one."""
        found = unseal(self._record(unit))
        path = self.image(unit)
        if found is None or not path.is_file() or file_sha256(path) != found.get("image_sha256"):
            return None
        return found

    def recorded_digest(self, unit: Unit) -> str | None:
        """The digest of a unit's image as recorded; None without a whole record."""
        found = unseal(self._record(unit))
        return None if found is None else found.get("image_sha256")

    def put_scores(self, reward: str, arm: str, block: int, scores: Mapping[str, Any]) -> None:
        """Store one reward's scores of a block of an arm's images."""
        with disk():
            path = self._scores(reward, arm, block)
            path.parent.mkdir(parents=True, exist_ok=True)
            _seal(path, scores)

    def scores(
        self, reward: str, arm: str, block: int, images: Sequence[str]
    ) -> dict[str, Any] | None:
        """Stored scores of a block whose images have these digests; else None."""
        found = unseal(self._scores(reward, arm, block))
        return found if found is not None and found.get("images") == list(images) else None

    def _record(self, unit: Unit) -> Path:
        return self.folder / RECORDS / unit.arm / f"{unit.name}.json"

    def _scores(self, reward: str, arm: str, block: int) -> Path:
        return self.folder / SCORES / slug(reward) / arm / f"{block:05d}.json"


def unseal(path: Path) -> dict[str, Any] | None:
    """A JSON file's contents, without its digest; None where it is missing or not whole."""
    try:
        found = read_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.pop("sha256", None) != _digest(found):
        return None
    return found


def _seal(path: Path, value: Mapping[str, Any]) -> None:
    made = plain(value)
    write_json(path, {**made, "sha256": _digest(made)})


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def disk() -> Iterator[None]:
    """Turn a full or failing disk into one clear error; files in place stay whole."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"cannot be written ({error.strerror or error})"
        where = f" ({error.filename})" if error.filename else ""
        raise FolderError(
            f"{what}{where}: what is finished stays valid; make room, and the same command "
            "continues"
        ) from error


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """What changed from one JSON value to another, as `arms[1].compute was 4.0, now 8.0`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*new, *(k for k in old if k not in new)]:
            where = f"{at}.{key}" if at else str(key)
            yield from differences(old.get(key), new.get(key), where)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{at}[{index}]")
    elif old != new:
        yield f"{at} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
