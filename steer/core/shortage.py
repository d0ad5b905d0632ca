"""Whether memory is short."""

from __future__ import annotations

import torch


_SHORTAGES = ("can't allocate memory", "out of memory", "_ALLOC_FAILED")


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory is short, on an accelerator or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGES)
