"""The folder of a preference set: files that appear whole, shard by shard, and can be continued."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
from torch import Tensor

from steer.core.errors import RecordError, TuneError
from steer.core.files.atomic import usable, write_atomic, write_json
from steer.core.files.folder import LOCK
from steer.tune.checks import check_unchanged, read_record
from steer.tune.tables import MANIFEST, arrow


if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

PARTS, BEGUN = "parts", "begun.json"
_LEFT = re.compile(r"\..+\.tmp")


class Folder:
    """A preference set on disk, finished or under way.

    `begun.json` holds the configuration it was begun with; `parts/` a table per finished shard,
    written after the shard's latents; `manifest.json` is written last.

    Args:
        path: The folder.

    Raises:
        TuneError: It cannot be read and written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            usable(self.path)
            (self.path / PARTS).mkdir(parents=True, exist_ok=True)
        except (RecordError, OSError) as error:
            raise TuneError(f"out={str(self.path)!r}: {error}") from error
        for place in (self.path, self.path / PARTS):
            for left in place.iterdir():
                if _LEFT.fullmatch(left.name):  # of a run that was killed while writing
                    left.unlink()

    @property
    def finished(self) -> bool:
        return (self.path / MANIFEST).is_file()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Note the settings of a new set, or see that a set under way has the same.

        Raises:
            TuneError: Others (every difference is named), or a folder of something else.
        """
        if self.check(settings):
            return
        others = sorted(p.name for p in self.path.iterdir() if p.name not in (PARTS, LOCK))
        if others:
            raise TuneError(
                f"out={str(self.path)!r}: holds {others[0]!r}, which `steer tune data` did not "
                "write; name a new or empty folder"
            )
        self.write_json(BEGUN, settings)

    def check(self, settings: Mapping[str, Any]) -> bool:
        """Whether a set was begun here, which must then have these settings among its own.

        Raises:
            TuneError: It has others (every difference is named).
        """
        path = self.path / BEGUN
        if not path.is_file():
            return False
        old = read_record(path)
        check_unchanged(self.path, {name: old.get(name) for name in settings}, settings)
        return True

    def has(self, shard: int) -> bool:
        """Whether a shard is finished."""
        name = f"{PARTS}/index-{shard:05d}.parquet"
        return (self.path / name).is_file() and (self.path / latents_name(shard)).is_file()

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """A safetensors file, in one step."""
        data = {key: value.contiguous() for key, value in tensors.items()}
        self._write(name, safetensors.torch.save(data, metadata={"format": "pt"}))

    def write_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """A parquet file, in one step."""
        self.write_arrow(name, arrow()[0].table(dict(columns)))

    def write_arrow(self, name: str, table: pa.Table) -> None:
        buffer = io.BytesIO()
        arrow()[1].write_table(table, buffer, compression="zstd")
        self._write(name, buffer.getvalue())

    def read_parts(self, shards: int) -> pa.Table:
        """All shards' tables, one after the other."""
        pyarrow, parquet = arrow()
        names = [self.path / PARTS / f"index-{i:05d}.parquet" for i in range(shards)]
        return pyarrow.concat_tables([parquet.read_table(name) for name in names])

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """A JSON file, in one step."""
        with self._full_disk():
            write_json(self.path / name, value)

    def adopt(self, source: Path, name: str, to: str | None = None) -> None:
        """A file of another folder, called `to` here: a hard link where it can be, else a copy."""
        target = self.path / (to or name)
        if target.exists():
            return
        with self._full_disk():
            try:
                os.link(source / name, target)
            except OSError:
                partial = self.path / f".{name}.copy.tmp"
                shutil.copyfile(source / name, partial)
                os.replace(partial, target)

    def _write(self, name: str, data: bytes) -> None:
        with self._full_disk():
            write_atomic(self.path / name, data)

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise TuneError(
                f"out={str(self.path)!r}: the disk is full; what is finished is kept: free some "
                "space, and the same command continues"
            ) from error


def latents_name(shard: int) -> str:
    return f"latents-{shard:05d}.safetensors"


def text_name(shard: int) -> str:
    return f"text-{shard:05d}.safetensors"
