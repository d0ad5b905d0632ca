"""A call's pick at work: what it saw of every candidate, and which rows it takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from steer.core.errors import SteerError
from steer.core.rows import rows_by_prompt
from steer.core.seeds import row_seed
from steer.core.types import Name, Step
from steer.search.picks.base import Candidates, Pick
from steer.search.picks.ranks import Best


_DRAWING = -4  # where a pick's draws come from, beside the particles' own seeds
_Seen: TypeAlias = dict[tuple[Name, int], Tensor]


@dataclass(eq=False)
class Picking:
    """The pick of a call.

    Attributes:
        pick: Which of the finished candidates are returned.
        seeds: One per prompt; of the picks that draw.
        latest: Per prompt, among how many finished candidates it chose last, and the KL of that.
    """

    pick: Pick = field(default_factory=Best)
    seeds: Sequence[int] = (0,)
    latest: dict[int, tuple[int, float]] = field(default_factory=dict)
    _seen: dict[Pick, _Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.watch(self.pick)

    @property
    def is_best(self) -> bool:
        """Whether the best are returned, so that others need not be kept."""
        return isinstance(self.pick, Best)

    def watch(self, pick: Pick | None) -> None:
        """From now on look at every image for this pick, if it needs that."""
        if pick is not None and pick.looks:
            self._seen.setdefault(pick, {})

    def look(self, images: Any, names: Sequence[Name], step: Step | None) -> None:
        """Images that were scored: of final latents, or previews at a step."""
        for pick, seen in self._seen.items():
            if not isinstance(images, Tensor):
                raise ValueError(
                    f"select={pick!r} compares pictures, and the pipeline makes none: use another "
                    "pick, such as Quantile(n_eff=8)"
                )
            features = pick.look(images)
            if features is not None:
                rows = features.detach().double().cpu()
                seen |= {(name, _at(step)): row for name, row in zip(names, rows, strict=True)}

    def rows(
        self,
        ids: Sequence[Name],
        values: Sequence[float],
        last: Collection[Name],
        count: int,
        *,
        pick: Pick | None = None,
        step: Step | None = None,
    ) -> list[int]:
        """Rows that are taken, `count` of every prompt, in the pick's order.

        Args:
            ids: Names of the candidates.
            values: Their rewards.
            last: Names that are taken only where nothing else is left.
            count: How many of every prompt; all where it has no more.
            pick: Another than the call's.
            step: Of previews; `None` for finished images.
        """
        final = pick is None and step is None
        pick = pick or self.pick
        taken: list[int] = []
        for prompt, rows in rows_by_prompt(ids).items():
            best = sorted(rows, key=lambda row: -values[row])
            good = [row for row in rows if self._is_whole(ids[row], last, pick, step)]
            if len(good) > count:
                own = self._candidates([ids[row] for row in good], values, good, pick, step)
                taken += [good[row] for row in _checked(pick, own, count)]
                if final:
                    self.latest[prompt] = len(own), pick.kl(own, count)
                continue
            fine = set(good)
            taken += sorted(best, key=lambda row: row not in fine)[:count]
        return taken

    def refuse(self, choice: str) -> None:
        """Raise ValueError if a method that chooses by itself, as `choice` says, has a pick."""
        if not self.is_best:
            raise ValueError(f"{choice} with select={self.pick!r}: both choose; leave one out")

    def _is_whole(self, name: Name, last: Collection[Name], pick: Pick, step: Step | None) -> bool:
        seen = self._seen.get(pick)
        return name not in last and (seen is None or (name, _at(step)) in seen)

    def _candidates(
        self,
        names: list[Name],
        values: Sequence[float],
        rows: list[int],
        pick: Pick,
        step: Step | None,
    ) -> Candidates:
        seen = self._seen.get(pick)
        features = None
        if seen is not None:
            features = torch.stack([seen[name, _at(step)] for name in names]).numpy()
        rewards = np.array([values[row] for row in rows], dtype=float)
        return Candidates(rewards, np.array([self._uniform(name) for name in names]), features)

    def _uniform(self, name: Name) -> float:
        prompt, particle = name
        return ((row_seed(self.seeds[prompt], _DRAWING, particle) >> 11) + 0.5) / 2.0**52


def _at(step: Step | None) -> int:
    return -1 if step is None else step.index


def _checked(pick: Pick, candidates: Candidates, count: int) -> list[int]:
    """What a pick chose; SteerError unless it is `count` different rows."""
    rows = list(pick.choose(candidates, count))
    whole = all(isinstance(row, int) and 0 <= row < len(candidates) for row in rows)
    if not whole or len(rows) != count or len(set(rows)) != count:
        raise SteerError(
            f"select={pick!r} chose {rows} of {len(candidates)} candidates: it must choose {count} "
            f"different rows from 0 to {len(candidates) - 1}"
        )
    return rows
