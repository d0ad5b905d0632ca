"""Tables as CSV files, in one step."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steer.core.files.atomic import write_atomic


def write_table(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Put a header and the rows at `path` as CSV: the old file or the new one, never half of one.

    Args:
        path: The file.
        rows: Values by column; None is an empty cell.
        columns: Their order; default the first row's.
    """
    text = io.StringIO(newline="")
    names = list(columns if columns is not None else rows[0] if rows else [])
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode(errors="surrogateescape"))
