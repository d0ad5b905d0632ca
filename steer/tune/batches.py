"""Which rows a step uses, and its randomness: functions of (seed, step) alone.

A resumed run therefore continues exactly where it stopped, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.core.errors import TuneError


class Stream:
    """Rows in endless passes over them, each pass in its own random order.

    Args:
        rows: What is drawn from, at least one.
        seed: Of the order; `tag` tells streams of one seed apart.
    """

    def __init__(self, rows: NDArray[np.int64], seed: int, tag: int = 0) -> None:
        self._rows, self._seed = rows, (seed, 17, tag)
        self._pass, self._order = -1, rows

    def take(self, start: int, count: int) -> NDArray[np.int64]:
        """Positions `start` to `start + count` of the endless sequence."""
        at = np.arange(start, start + count)
        found = np.empty(count, dtype=np.int64)
        for number in np.unique(at // len(self._rows)):
            inside = at // len(self._rows) == number
            found[inside] = self._permute(int(number))[at[inside] % len(self._rows)]
        return found

    def _permute(self, number: int) -> NDArray[np.int64]:
        if number != self._pass:
            rng = np.random.default_rng([*self._seed, number])
            self._pass, self._order = number, rng.permutation(self._rows)
        return self._order


class Siblings(Stream):
    """Rows in passes where `size` images of one prompt stand together.

    A prompt's images are dealt into groups anew in every pass; those left over wait for the next.

    Args:
        rows: What is drawn from.
        prompts: (M,) the prompt of each.
        size: Of a group.
        seed: Of the order.

    Raises:
        TuneError: No prompt has as many images.
    """

    def __init__(
        self, rows: NDArray[np.int64], prompts: NDArray[np.int64], size: int, seed: int
    ) -> None:
        self._size = size
        self._families = [rows[prompts == prompt] for prompt in np.unique(prompts)]
        whole = sum(len(own) // size for own in self._families) * size
        if not whole:
            raise TuneError(f"siblings={size}: no prompt has as many images to train on")
        super().__init__(rows[:whole], seed, 3)

    def _permute(self, number: int) -> NDArray[np.int64]:
        if number != self._pass:
            rng = np.random.default_rng([*self._seed, number])
            dealt = [rng.permutation(own) for own in self._families]
            groups = [own[: len(own) // self._size * self._size] for own in dealt]
            order = rng.permutation(np.concatenate(groups).reshape(-1, self._size))
            self._pass, self._order = number, order.reshape(-1)
        return self._order


class Order:
    """The rows of every batch.

    Args:
        rows: All rows (M,) that are trained on.
        batch: How many per step.
        seed: Of the order.
        labels: (M,) 0 or 1, where a share of good ones is wanted.
        positive_share: That share; None takes rows as they come.
        siblings: How many images of one prompt stand together; then with `prompts` (M,).
        start: The step that gets the first batch.

    Raises:
        TuneError: Fewer rows than a batch, or a label without rows.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        batch: int,
        seed: int,
        labels: NDArray[np.float32] | None = None,
        positive_share: float | None = None,
        siblings: int = 1,
        prompts: NDArray[np.int64] | None = None,
        start: int = 0,
    ) -> None:
        self._start = start
        if len(rows) < batch:
            raise TuneError(
                f"batch={batch}: the dataset has only {len(rows)} rows to train on; use a smaller "
                "batch, or make more data"
            )
        if siblings > 1 and prompts is not None:
            self._parts = [(Siblings(rows, prompts, siblings, seed), batch)]
            return
        if positive_share is None or labels is None:
            self._parts = [(Stream(rows, seed), batch)]
            return
        good = max(1, min(batch - 1, round(batch * positive_share)))
        if batch < 2 or not 0 < labels.sum() < len(labels):
            raise TuneError(
                f"positive_share={positive_share}: needs a batch of at least 2, and images of both "
                "labels"
            )
        self._parts = [
            (Stream(rows[labels == 1], seed, 1), good),
            (Stream(rows[labels == 0], seed, 2), batch - good),
        ]

    def at(self, step: int) -> NDArray[np.int64]:
        """(batch,) the rows of a step, `start` or later."""
        place = step - self._start
        return np.concatenate([stream.take(place * n, n) for stream, n in self._parts])


@dataclass(frozen=True)
class Draws:
    """What one step leaves to chance, for every row (or pair) of the whole batch, on the CPU.

    Attributes:
        noise: (B, *latent) float32.
        index: (B,) timesteps, as places in the noising grid; uniform.
        dropped: (B,) bool, whether the text is dropped.
    """

    noise: Tensor
    index: Tensor
    dropped: Tensor

    @classmethod
    def at(
        cls,
        seed: int,
        step: int,
        rows: int,
        shape: Sequence[int],
        timesteps: int,
        dropout: float,
        tag: int = 0,
        siblings: int = 1,
    ) -> Draws:
        """Those of a step: the same for every process and every division of the batch.

        Of every `siblings` rows that follow each other, all have the same.
        """
        mixed = np.random.SeedSequence([seed, 29, tag, step]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]) >> 1)
        count = -(-rows // siblings)
        index = torch.randint(timesteps, (count,), generator=generator)
        dropped = torch.rand(count, generator=generator) < dropout
        noise = torch.randn(count, *shape, generator=generator)
        drawn = (noise, index, dropped)
        if siblings > 1:
            drawn = tuple(x.repeat_interleave(siblings, 0)[:rows] for x in drawn)
        return cls(*drawn)

    def part(self, rows: slice) -> Draws:
        """Those of some of the rows."""
        return Draws(self.noise[rows], self.index[rows], self.dropped[rows])
