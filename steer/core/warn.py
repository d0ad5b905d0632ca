"""Warnings of steer: one sentence, to Python's warnings and to the log."""

from __future__ import annotations

import logging
import warnings


_log = logging.getLogger("steer")


def warn(message: str, stacklevel: int = 3) -> None:
    """Warn of what the user may want to change.

    Args:
        message: One sentence that names the value and the way out.
        stacklevel: As for `warnings.warn`, counted from the caller.
    """
    warnings.warn(message, UserWarning, stacklevel=stacklevel + 1)
    _log.warning(message)
