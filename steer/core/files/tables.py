"""Tables as CSV files, in one step."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steer.core.files.atomic import write_atomic


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_table(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Put a header and the rows at `path` as CSV: the old file or the new one, never half of one.

    Args:
        path: The file.
        rows: Values by column; None is an empty cell. Text that a spreadsheet would take for a
            formula gets an apostrophe in front.
        columns: Their order; default the first row's.
    """
    text = io.StringIO(newline="")
    names = list(columns if columns is not None else rows[0] if rows else [])
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_atomic(path, text.getvalue().encode(errors="surrogateescape"))


def _cell(value: Any) -> Any:
    """A value, or text that no spreadsheet runs (CWE-1236)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
