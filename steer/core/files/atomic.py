"""Files written in one step: a reader finds the old file or the new one, never half of one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steer.core.errors import RecordError


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


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, renamed over it at the end; removed where that fails."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:  # on the disk before it has its name: a power cut
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: a reader never sees part of it."""
    with replacement(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Put `value` at `path` as JSON, in one step."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(path, text.encode() + b"\n")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
