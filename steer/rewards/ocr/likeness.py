"""How much the lines read in an image are like the texts that should be there."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


_PLAIN = str.maketrans("‘’‚`“”„", "''''\"\"\"")


def plain_text(text: str, *, case: bool = False, spacing: bool = False) -> str:
    """A text as it is compared: in Unicode's NFKC form, with straight quotes.

    Args:
        text: As written or read.
        case: Whether upper and lower case differ.
        spacing: Whether spaces count; runs of them are one in any case.
    """
    text = unicodedata.normalize("NFKC", text).translate(_PLAIN)
    return (" " if spacing else "").join((text if case else text.casefold()).split())


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements of characters from `a` to `b` (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def likeness(a: str, b: str) -> float:
    """`1 - distance / length of the longer`, in [0, 1]: what `b` has beside `a` costs too."""
    longer = max(len(a), len(b))
    return 1 - edit_distance(a, b) / longer if longer else 1.0


def gather(target: str, lines: Sequence[str], gap: str = "") -> tuple[float, list[int]]:
    """The lines that together are most like `target`: their likeness, and which they are.

    A text may stand in several lines, and OCR may read these in any order: beginning with the
    likest line, each further one is put where it helps most, while it helps.

    Args:
        target: What should be written, as `plain_text` has it.
        lines: What was read, likewise.
        gap: What joins two lines.
    """
    best = 0.0
    chosen: list[int] = []
    while True:
        free = [k for k in range(len(lines)) if k not in chosen]
        tries = [[*chosen[:at], k, *chosen[at:]] for k in free for at in range(len(chosen) + 1)]
        scored = ((likeness(target, gap.join(lines[k] for k in t)), t) for t in tries)
        found, order = max(scored, key=lambda pair: pair[0], default=(0.0, chosen))
        if found <= best:
            return best, chosen
        best, chosen = found, order


def written(
    targets: Sequence[str], lines: Sequence[str], *, gap: str = "", extra: float = 0.0
) -> float:
    """How well all targets are written, in [0, 1]: the mean of their likenesses.

    Longer targets choose their lines first, and a line serves one target, unless all targets read
    as one text fit better (two words on one line). What no target uses costs `extra` times its
    share of all characters.

    Args:
        targets: At least one, none of them empty, as `plain_text` has them.
        lines: What was read, likewise.
        gap: What joins two lines.
        extra: In [0, 1].
    """
    free, scores = list(range(len(lines))), []
    for target in sorted(targets, key=len, reverse=True):
        score, chosen = gather(target, [lines[k] for k in free], gap)
        used = {free[k] for k in chosen}
        free = [k for k in free if k not in used]
        scores.append(score)
    ways = [(sum(scores) / len(scores), free)]
    if len(targets) > 1:
        score, chosen = gather(gap.join(targets), lines, gap)
        ways.append((score, [k for k in range(len(lines)) if k not in chosen]))
    return max(score * (1 - extra * _share(left, lines)) for score, left in ways)


def _share(left: Sequence[int], lines: Sequence[str]) -> float:
    """The characters of some lines, as a share of all."""
    whole = sum(map(len, lines))
    return sum(len(lines[k]) for k in left) / whole if whole else 0.0
