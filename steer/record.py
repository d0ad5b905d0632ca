"""What a run leaves behind: `run.json`, and PNG files that carry their own reproduction data.

Every file is written beside its name and then renamed over it, so a reader finds the old file or
the new one, never half of one. Importing this module does not import torch.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer.errors import SteerError


if TYPE_CHECKING:
    from PIL import Image

FORMAT = "steer-run/1"
RUN_FILE = "run.json"
_CHUNK = "steer"
_PACKAGES = {
    "steer": "steer-diffusion",
    "torch": "torch",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "open_clip": "open_clip_torch",
    "safetensors": "safetensors",
    "numpy": "numpy",
}


class RecordError(SteerError, ValueError):
    """A run folder or an image does not hold what it should."""


def versions() -> dict[str, str]:
    """The versions that decide what an image looks like, Python's included."""
    found = {"python": platform.python_version()}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            if name == "steer":
                from steer import __version__

                found[name] = __version__
    return found


def prompt_seed(seed: int, index: int) -> int:
    """The seed of prompt `index`: `seed + index`, whatever else the run holds."""
    return seed + index


def plain(value: Any) -> Any:
    """`value` as JSON can hold it; non-finite numbers become None, unknown objects their repr."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(v) for v in value]
    if not isinstance(value, bytes) and hasattr(value, "tolist"):
        return plain(value.tolist())
    return repr(value)


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: a reader never sees part of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Put `value` at `path` as JSON, in one step."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(path, text.encode() + b"\n")


def save_png(path: Path, image: Image.Image, data: Mapping[str, Any]) -> None:
    """Put `image` at `path` with `data` in a text chunk that `read` gives back."""
    from PIL import PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Software", f"steer {versions().get('steer', '')}".strip())
    if "prompt" in data:
        chunks.add_itxt("Description", str(data["prompt"]))
    chunks.add_itxt(_CHUNK, json.dumps(plain(data), ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    write_atomic(path, buffer.getvalue())


def read(path: str | Path) -> dict[str, Any]:
    """The reproduction data in a PNG that steer wrote: prompt, seed, arguments, versions, ...

    Raises:
        RecordError: `path` cannot be read as an image, or carries no such data.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = image.info.get(_CHUNK)
    except (OSError, SyntaxError) as error:
        raise RecordError(f"path={str(path)!r}: not a readable image ({error})") from error
    if not isinstance(text, str):
        raise RecordError(
            f"path={str(path)!r}: no reproduction data in this image; "
            "`steer sample` writes it into PNG files, and re-encoding an image drops it"
        )
    return json.loads(text)


def usable(folder: Path) -> None:
    """See that `folder` is there, or can be made, and be read and written; else RecordError."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".steer-", suffix=".tmp"):
            list(folder.iterdir())
        if new:
            folder.rmdir()
    except OSError as error:
        raise RecordError(
            f"--out {str(folder)!r}: not a folder that can be read and written "
            f"({error.strerror or error}); name another"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Run:
    """A run folder: its `run.json`, kept valid at every moment, one entry per finished prompt.

    Attributes:
        folder: Where the files are.
        data: The contents of `run.json`.
    """

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.folder = folder
        self.data = data

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """The run in `folder`; raises RecordError if there is none or it cannot be read."""
        folder = Path(folder)
        path = folder / RUN_FILE
        if not folder.is_dir():
            raise RecordError(f"folder {str(folder)!r}: no such folder")
        try:
            data = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise RecordError(
                f"folder {str(folder)!r}: holds no {RUN_FILE}; name a folder that "
                "`steer sample --out` wrote"
            ) from None
        except (OSError, ValueError) as error:
            raise RecordError(f"{str(path)!r}: cannot be read ({error})") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise RecordError(f"{str(path)!r}: not a {FORMAT} file; choose another folder")
        return cls(folder, data)

    @classmethod
    def create(
        cls, folder: str | Path, arguments: Mapping[str, Any], *, kind: str, command: str
    ) -> Run:
        """A new run in `folder`; raises RecordError when the folder cannot be written."""
        usable(Path(folder))
        Path(folder).mkdir(parents=True, exist_ok=True)
        run = cls(Path(folder), _new_run(kind, command, plain(arguments)))
        run.save()
        return run

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise RecordError naming the first of `arguments` that is not this run's."""
        _same_arguments(self.folder, self.data.get("arguments", {}), plain(arguments))

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The finished prompts, by index."""
        return self.data["prompts"]

    @property
    def status(self) -> str:
        """`running`, `interrupted`, `failed` or `finished`."""
        return self.data["status"]

    def missing(self) -> list[int]:
        """Indices of the prompts that have no entry yet, or whose images are gone."""
        there = {e["index"] for e in self.entries if self._has_files(e)}
        return [i for i in range(len(self.data["arguments"]["prompts"])) if i not in there]

    def add(self, entry: Mapping[str, Any]) -> None:
        """Record a finished prompt; its images must already be in the folder."""
        others = [e for e in self.entries if e["index"] != entry["index"]]
        self.data["prompts"] = sorted([*others, plain(entry)], key=lambda e: e["index"])
        self.save()

    def close(self, status: str) -> None:
        """Record how the run ended."""
        self.data["status"] = status
        self.save()

    def save(self) -> None:
        """Write `run.json`, in one step."""
        self.data["updated"] = _now()
        write_json(self.folder / RUN_FILE, self.data)

    def _has_files(self, entry: Mapping[str, Any]) -> bool:
        files = [*entry["images"], *([entry["base"]["image"]] if entry.get("base") else [])]
        return all((self.folder / name).is_file() for name in files)


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
        "prompts": [],
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
