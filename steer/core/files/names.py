"""Names: their natural order, and as names of folders."""

from __future__ import annotations

import hashlib
import re


def natural_key(path: str) -> list[tuple[int, int, str]]:
    """A sort key: as text, but digits by their value, so that `2.png` comes before `10.png`."""
    parts = [part for part in re.split(r"(\d+)", path) if part]
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts]


def slug(name: str, otherwise: str = "reward") -> str:
    """A name as a folder's, unique by a few digits of its hash where it was changed.

    Args:
        name: Any text.
        otherwise: In place of a name without a letter or digit.
    """
    clean = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.")[:60] or otherwise
    if clean == name:
        return clean
    return f"{clean}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
