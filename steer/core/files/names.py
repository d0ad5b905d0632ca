"""Names and other text of users: in natural order, as names of folders, on a terminal."""

from __future__ import annotations

import hashlib
import re


_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


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


def visible(text: object) -> str:
    """Text with escape sequences for what a terminal would obey: control and direction characters.

    Line breaks and tabs stay; lone surrogates (names that are not UTF-8) become `\\udcff`.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))
