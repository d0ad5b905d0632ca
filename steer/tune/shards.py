"""Rows spread over safetensors files, read one by one without loading the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steer.core.errors import TuneError


def open_shard(path: Path) -> Any:
    """The safetensors file, memory-mapped; TuneError where it is missing or damaged."""
    try:
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        reason = "there is no such file" if not path.exists() else f"cannot be read ({error})"
        raise TuneError(f"{str(path)!r}: {reason}; make the dataset again") from error


class Shards:
    """Rows of named tensors over several files.

    Args:
        folder: Where the files are.
        files: Their names.
        file_of: (N,) index into `files` of every row.
        row_of: (N,) row within its file.
        names: The tensors; each file's has its rows in dimension 0.

    Raises:
        TuneError: A file or tensor is missing, a row is outside its file, or shapes differ.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        file_of: NDArray[np.int64],
        row_of: NDArray[np.int64],
        names: Sequence[str],
    ) -> None:
        self.names, self._file_of, self._row_of = tuple(names), file_of, row_of
        self._files = list(files)
        self._folder = folder
        self._open = [open_shard(folder / name) for name in files]
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            self._check(name)

    def _check(self, name: str) -> None:
        for i, (file, handle) in enumerate(zip(self._files, self._open, strict=True)):
            if name not in handle.keys():  # noqa: SIM118 (not a mapping)
                raise TuneError(f"{str(self._folder / file)!r}: holds no tensor {name!r}")
            length, *shape = handle.get_slice(name).get_shape()
            if self.shapes.setdefault(name, tuple(shape)) != tuple(shape):
                raise TuneError(
                    f"{str(self._folder / file)!r}: {name!r} has rows of shape {tuple(shape)}, in "
                    f"other files {self.shapes[name]}"
                )
            rows = self._row_of[self._file_of == i]
            if len(rows) and not (rows.min() >= 0 and rows.max() < length):
                raise TuneError(
                    f"{str(self._folder / file)!r}: {name!r} has {length} rows, and row "
                    f"{int(rows.max() if rows.min() >= 0 else rows.min())} is asked for"
                )

    def read(self, name: str, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """The rows of one tensor, (len(rows), *shape), as stored, on the CPU."""
        slices = [handle.get_slice(name) for handle in self._open]
        found = []
        for row in rows:
            at = int(self._row_of[row])
            found.append(slices[int(self._file_of[row])][at : at + 1])
        return torch.cat(found)
