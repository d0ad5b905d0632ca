"""The JSON files of thresholds and calibrations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steer.core.errors import ThresholdError


def read_object(path: str | Path, what: str, example: str) -> Mapping[str, Any]:
    """The JSON object in a file.

    Args:
        path: Of the file.
        what: What it should hold, for errors: `"threshold"`.
        example: How such a file is written.

    Raises:
        ThresholdError: It cannot be read, or holds something else.
    """
    try:
        data = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ThresholdError(
            f"{what}={str(path)!r}: cannot be read ({reason}); write one with {example}"
        ) from error
    if not isinstance(data, Mapping):
        raise ThresholdError(f"{what}={str(path)!r}: not a {what} file; write one with {example}")
    return data
