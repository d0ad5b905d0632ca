"""What the rounds came to, one by one: means of reward and judge, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steer.core.files.atomic import plain, write_json
from steer.tune.checks import check_unchanged, read_record
from steer.tune.dataset import Dataset


RECORD = "rounds.json"


@dataclass(frozen=True)
class Look:
    """One round's samples, before it trains on them.

    Attributes:
        round: 0, 1, ...
        step: Updates that the policy which drew them had.
        images: How many.
        reward, judge: Means over the plain samples, or over all where a search found all of them;
            `judge` is None without one.
        found: Mean reward of what a search found, where there is one.
    """

    round: int
    step: int
    images: int
    reward: float
    judge: float | None = None
    found: float | None = None

    @classmethod
    def of(cls, number: int, step: int, data: Dataset, judge: str | None) -> Look:
        """Of a round's own samples; `judge` is the column of its scores."""
        searched = data.searched if data.has_search else np.zeros(len(data), dtype=np.bool_)
        rows = ~searched if not searched.all() else searched
        judged = None if judge is None else float(data.score(judge)[rows].mean())
        found = float(data.scores[searched].mean()) if searched.any() else None
        return cls(number, step, len(data), float(data.scores[rows].mean()), judged, found)


def best_of(looks: Sequence[Look]) -> Look | None:
    """The round whose samples the judge likes best, the first of equals; None without a judge."""
    judged = [look for look in looks if look.judge is not None]
    return max(judged, key=lambda look: look.judge or 0.0) if judged else None


def has_fallen(looks: Sequence[Look], patience: int) -> bool:
    """Whether the judge has stayed below its best for `patience` rounds: over-optimisation."""
    best = best_of(looks)
    return best is not None and looks[-1].round - best.round >= patience


class Record:
    """`rounds.json`: with what settings rounds were begun, and what each came to.

    Args:
        out: The run's folder.
        settings: Of the rounds.

    Raises:
        TuneError: Rounds were begun there with other settings; every difference is named.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = out / RECORD, plain(settings)
        self.looks: list[Look] = []
        if self._path.is_file():
            known = read_record(self._path)
            check_unchanged(out, {"rounds": known.get("rounds")}, {"rounds": self._settings})
            self.looks = [Look(**look) for look in known.get("looks", [])]

    def begin(self) -> None:
        """Write the settings down."""
        self._write()

    def add(self, look: Look) -> None:
        """Note a round; what was noted of it and of later ones is replaced."""
        self.looks = [*(known for known in self.looks if known.round < look.round), look]
        self._write()

    def _write(self) -> None:
        looks = [asdict(look) for look in self.looks]
        write_json(self._path, {"rounds": self._settings, "looks": looks})
