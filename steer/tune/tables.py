"""A dataset folder's files and tables: what writers, readers and checks of it have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steer.core.errors import TuneError


FORMAT = "steer-tune/1"
MANIFEST, INDEX, PAIRS = "manifest.json", "index.parquet", "pairs.parquet"
UNCOND, SHARED = "text-uncond.safetensors", "text-shared.safetensors"
PROMPT_IDS = "prompt_ids"


@dataclass(frozen=True)
class Images:
    """The rows of `index.parquet`.

    Attributes:
        ids: N names, all different.
        prompts: N texts.
        prompt_ids: (N,) the prompts' numbers.
        split: (N,) `"train"` or `"test"`.
    """

    ids: list[str]
    prompts: list[str]
    prompt_ids: NDArray[np.int64]
    split: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Pairs:
    """Preferences between images of one prompt, as rows of the index.

    Attributes:
        winner, loser: (M,) rows of the index.
        margin: (M,) score of the winner minus the loser's; negative where labels were flipped.
        split: (M,) `"train"` or `"test"`.
    """

    winner: NDArray[np.int64]
    loser: NDArray[np.int64]
    margin: NDArray[np.float64]
    split: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.winner)


def arrow() -> tuple[Any, Any]:
    """`(pyarrow, pyarrow.parquet)`; TuneError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TuneError("datasets need pyarrow: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """All columns of a parquet file.

    Raises:
        TuneError: It cannot be read, or one of `columns` is missing.
    """
    pyarrow, parquet = arrow()
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise TuneError(f"{str(path)!r}: cannot be read ({error}); make it again") from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise TuneError(f"{str(path)!r}: without the column(s) {', '.join(missing)}")
    return {name: table.column(name).to_pylist() for name in table.column_names}


def list_names(names: Sequence[object], most: int = 5) -> str:
    """The first few names, and how many more."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
