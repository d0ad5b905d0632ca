"""What a run leaves behind: `run.json`, and PNG files that carry their own reproduction data.

Every file is written beside its name and then renamed over it, so a reader finds the old file or
the new one, never half of one; of images `run.json` keeps the SHA-256. While prompts are drawn,
`run.json` stays as it is and each finished prompt is a line of `run.jsonl`, so that recording one
costs the same however many there are. Where the run ends, the lines go into `run.json`. Importing
this module does not import torch.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steer.core.errors import RecordError
from steer.core.files.atomic import file_sha256, plain, usable, write_json
from steer.core.files.folder import check_free
from steer.core.files.json_lines import JsonLines
from steer.core.files.text import read_json
from steer.core.files.versions import versions


FORMAT = "steer-run/1"
RUN_FILE, PAGE_FILE, IMAGES = "run.json", "report.html", "images"
LOG_FILE = "run.jsonl"
_IMAGE = re.compile(r"\d{4,}-(\d+|plain|previews)\.png|\..+\.tmp")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunFolder:
    """A run folder: its `run.json` and `run.jsonl`, one entry per finished prompt.

    It can be loaded at every moment, and after a kill it lacks no entry that `add` recorded.

    Attributes:
        folder: Where the files are.
        data: What `run.json` holds beside the entries.
    """

    def __init__(
        self, folder: Path, data: dict[str, Any], entries: Iterable[dict[str, Any]] = ()
    ) -> None:
        self.folder = folder
        self.data = data
        self._entries = {entry["index"]: entry for entry in entries}
        self._log = _log(folder)

    @classmethod
    def load(cls, folder: str | Path) -> RunFolder:
        """The run in `folder`; raises RecordError if there is none or it cannot be read."""
        folder = Path(folder)
        if not folder.is_dir():
            raise RecordError(f"folder {str(folder)!r}: no such folder")
        if not (folder / RUN_FILE).exists():
            raise RecordError(
                f"folder {str(folder)!r}: holds no {RUN_FILE}; name a folder that "
                "`steer sample --out` wrote"
            )
        added = _added(_log(folder))  # first: a command that ends now moves them into run.json
        data = _read(folder / RUN_FILE)
        run = cls(folder, data, data.pop("prompts"))
        for entry in added:
            run._keep(entry)
        return run

    @classmethod
    def create(
        cls, folder: str | Path, arguments: Mapping[str, Any], *, kind: str, command: str
    ) -> RunFolder:
        """A new run in `folder`.

        Raises:
            RecordError: The folder cannot be written, or holds files of others by the names of a
                run's.
        """
        usable(Path(folder))
        check_own(Path(folder))
        Path(folder).mkdir(parents=True, exist_ok=True)
        run = cls(Path(folder), _new_run(kind, command, plain(arguments)))
        run._log.remove()  # an earlier run's, of which run.json was deleted
        run.save()
        return run

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise RecordError naming the first of `arguments` that is not this run's."""
        _same_arguments(self.folder, self.data.get("arguments", {}), plain(arguments))

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The finished prompts, by index."""
        return [self._entries[index] for index in sorted(self._entries)]

    @property
    def status(self) -> str:
        """`running`, `interrupted`, `failed` or `finished`."""
        return self.data["status"]

    def missing(self) -> list[int]:
        """Indices of the prompts that have no entry yet, or whose images are gone."""
        there = {index for index, e in self._entries.items() if self._has_files(e)}
        return [i for i in range(len(self.data["arguments"]["prompts"])) if i not in there]

    def add(self, entry: Mapping[str, Any]) -> None:
        """Record a finished prompt, on the disk; its images must already be in the folder."""
        digests = {name: file_sha256(self.folder / name) for name in _files(entry)}
        kept = plain({**entry, "sha256": digests})
        self._log.append(kept)
        self._keep(kept)

    def close(self, status: str) -> None:
        """Record how the run ended."""
        self.data["status"] = status
        self.save()

    def save(self) -> None:
        """Write `run.json` with all entries, in one step; `run.jsonl` has served its time."""
        self.data["updated"] = _now()
        write_json(self.folder / RUN_FILE, {**self.data, "prompts": self.entries})
        self._log.remove()

    def _keep(self, entry: dict[str, Any]) -> None:
        """Take in an entry; the configuration names the method of the newest."""
        self._entries[entry["index"]] = entry
        if "method" in entry:
            self.data["configuration"]["method"] = entry["method"]

    def _has_files(self, entry: Mapping[str, Any]) -> bool:
        """Whether a prompt's images are there, and the recorded ones."""
        digests = entry.get("sha256", {})
        paths = {name: self.folder / name for name in _files(entry)}
        return all(p.is_file() and digests.get(n) == file_sha256(p) for n, p in paths.items())


def _log(folder: Path) -> JsonLines:
    return JsonLines(folder / LOG_FILE, {"format": FORMAT})


def _added(log: JsonLines) -> list[dict[str, Any]]:
    """The entries of `run.jsonl`."""
    try:
        found = log.read()
        if not all(_is_entry(e) for e in found):
            raise ValueError("a line is no entry")
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{str(log.path)!r}: cannot be read ({error}); delete this file to draw its prompts "
            "again, or choose another folder"
        ) from error
    return found


def _read(path: Path) -> dict[str, Any]:
    """The contents of `run.json`."""
    try:
        data = read_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{str(path)!r}: cannot be read ({error}); delete this file to begin again in the "
            "folder, or choose another"
        ) from error
    if not _is_run(data):
        raise RecordError(f"{str(path)!r}: not a {FORMAT} file; choose another folder")
    return data


def check_own(folder: Path) -> None:
    """Raise RecordError where a folder without a run holds files that a run would replace."""
    if (folder / RUN_FILE).exists():
        return
    own = {
        PAGE_FILE: _is_page(folder / PAGE_FILE),
        LOG_FILE: _log(folder).is_own(),
        IMAGES: _is_drawn(folder / IMAGES),
    }
    check_free(folder, [name for name, mine in own.items() if not mine], "steer")


def _is_page(path: Path) -> bool:
    """Whether a file is a report that steer wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return " · steer</title>".encode() in file.read(4096)


def _is_drawn(folder: Path) -> bool:
    """Whether all files of a folder are named as a run names its images."""
    return folder.is_dir() and all(_IMAGE.fullmatch(path.name) for path in folder.iterdir())


def _files(entry: Mapping[str, Any]) -> list[str]:
    """The files of a prompt: its images, the plain one, and the sheet of previews."""
    sheet = entry.get("previews")
    base = entry.get("base")
    return [
        *entry["images"],
        *([base["image"]] if base else []),
        *([sheet["file"]] if sheet else []),
    ]


def _is_run(data: Any) -> bool:
    """Whether this is what `_new_run` makes, with entries added."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        return False
    kinds = {"prompts": list, "arguments": dict, "configuration": dict, "status": str}
    if not all(isinstance(data.get(name), kind) for name, kind in kinds.items()):
        return False
    return all(_is_entry(e) for e in data["prompts"])


def _is_entry(data: Any) -> bool:
    kinds = {"index": int, "images": list}
    return isinstance(data, dict) and all(isinstance(data.get(k), t) for k, t in kinds.items())


def _new_run(kind: str, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": kind,
        "status": "running",
        "command": command,
        "started": _now(),
        "arguments": arguments,
        "configuration": {},
        "versions": versions(),
        "platform": platform.platform(),
    }


def _same_arguments(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise RecordError naming the first argument that differs."""
    for name in [*new, *(key for key in old if key not in new)]:
        if old.get(name) != new.get(name):
            flag = name if name == "prompts" else "--" + name.replace("_", "-")
            raise RecordError(
                f"--out {str(folder)!r}: holds a run with other arguments: {flag} was "
                f"{old.get(name)!r}, now {new.get(name)!r}; use another folder, or the same value"
            )
