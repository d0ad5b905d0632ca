"""Batches on their way to the device: latents, text features, labels and the step's randomness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.tune.batches import Draws, Order
from steer.tune.dataset import Dataset
from steer.tune.labels import Labels


class Rows(Protocol):
    """What one update is made from."""

    @property
    def ids(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def parts(self, count: int) -> Sequence[Any]:
        """Parts that are computed one after the other, in at most `count` pieces of the rows."""
        ...


@dataclass(frozen=True)
class Batch:
    """Rows of one step.

    Attributes:
        ids: The images (winners before losers).
        x0: (sides, B, *latent) float32, or whole numbers of tokens; two sides for pairs, else one.
        text: Denoiser arguments by dotted name, (B, ...).
        shared: Denoiser arguments without a prompt dimension.
        draws: The randomness, (B, ...).
        labels, weights: (B,) or None; the weights of pairs are their margins.
    """

    ids: tuple[str, ...]
    x0: Tensor
    text: Mapping[str, Tensor]
    shared: Mapping[str, Tensor]
    draws: Draws
    labels: Tensor | None
    weights: Tensor | None

    def __len__(self) -> int:
        return self.x0.shape[1]

    def parts(self, count: int) -> list[Batch]:
        """The rows in `count` parts."""
        return [self.part(rows) for rows in pieces(len(self), count)]

    def part(self, rows: slice) -> Batch:
        """Some of the rows."""
        cut = (None if x is None else x[rows] for x in (self.labels, self.weights))
        text = {name: value[rows] for name, value in self.text.items()}
        draws = self.draws.part(rows)
        return Batch(self.ids, self.x0[:, rows], text, self.shared, draws, *cut)


class Loader:
    """Reads this process's share of every step's rows, one step ahead.

    Args:
        data: The dataset.
        order: Rows of every step: images, or pairs where `pairs`.
        draws: (seed, grid length, dropout, siblings) of the draws.
        share: (rank, processes).
        pairs: Whether rows are pairs.
        labels: Of every image.
        marked: By image row: text features that replace the dataset's own.
    """

    def __init__(
        self,
        data: Dataset,
        order: Order,
        draws: tuple[int, int, float, int],
        share: tuple[int, int] = (0, 1),
        pairs: bool = False,
        labels: Labels | None = None,
        marked: Mapping[int, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._data, self._order, self._labels = data, order, labels
        self._seed, self._grid, self._dropout, self._siblings = draws
        self._rank, self._world = share
        self._pairs = data.pairs if pairs else None
        self._marked = marked or {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="steer-loader")
        self._next: tuple[int, Future[Batch]] | None = None

    def at(self, step: int) -> Batch:
        """The batch of a step; the next one is read meanwhile."""
        known = self._next if self._next and self._next[0] == step else None
        future = known[1] if known else self._worker.submit(self._read, step)
        batch = future.result()
        self._next = (step + 1, self._worker.submit(self._read, step + 1))
        return batch

    def measurement(self, rows: NDArray[np.int64], tag: int) -> Batch:
        """These rows with randomness that depends on nothing else, for measurements."""
        return self._worker.submit(
            self._build, rows, self._draw(0, len(rows), tag, 0.0, 1)
        ).result()

    def close(self) -> None:
        """Stop reading."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> Batch:
        rows = self._order.at(step)
        draws = self._draw(step, len(rows), 0, self._dropout, self._siblings)
        size = len(rows) // self._world
        mine = slice(self._rank * size, (self._rank + 1) * size)
        return self._build(rows[mine], draws.part(mine))

    def _draw(self, step: int, rows: int, tag: int, dropout: float, siblings: int) -> Draws:
        shape = self._data.latent_shape
        return Draws.at(self._seed, step, rows, shape, self._grid, dropout, tag, siblings)

    def _build(self, rows: NDArray[np.int64], draws: Draws) -> Batch:
        sides = [rows]
        if self._pairs is not None:
            sides = [self._pairs.winner[rows], self._pairs.loser[rows]]
        x0 = torch.stack([self._data.latents(side) for side in sides])
        at = None if self._labels is None else torch.from_numpy(rows)
        return Batch(
            tuple(self._data.ids[i] for side in sides for i in side),
            x0.float() if x0.is_floating_point() else x0,
            self._text(sides[0], draws.dropped),
            self._data.shared,
            draws,
            None if self._labels is None else self._labels.labels[at],
            self._margins(rows) if self._labels is None else self._labels.weights[at],
        )

    def _margins(self, rows: NDArray[np.int64]) -> Tensor | None:
        if self._pairs is None:
            return None
        return torch.from_numpy(self._pairs.margin[rows]).float()

    def _text(self, rows: NDArray[np.int64], dropped: Tensor) -> dict[str, Tensor]:
        text = self._data.text(rows)
        for place, row in enumerate(rows.tolist()):
            for name, value in self._marked.get(row, {}).items():
                text[name][place] = value
        if bool(dropped.any()):
            for name, empty in self._data.uncond.items():
                text[name][dropped] = empty.to(text[name])
        return text


def pieces(rows: int, count: int) -> list[slice]:
    """`rows` in at most `count` pieces of equal size, but for the last."""
    size = -(-rows // count)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def to_device(
    batch: Batch, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """Latents, denoiser arguments, noise and timestep places of all sides' rows, flattened.

    Args:
        batch: Of this process.
        device: Where to.
        dtype: Of the denoiser's arguments.

    Returns:
        x0 (sides B, *latent), arguments (sides B, ...), noise like x0, index (sides B,): the same
        noise, timestep and text on all sides.
    """
    sides = len(batch.x0)
    text = {k: _repeat(v, sides) for k, v in batch.text.items()} | dict(batch.shared)
    text = {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in text.items()}
    noise, index = _repeat(batch.draws.noise, sides), _repeat(batch.draws.index, sides)
    return batch.x0.flatten(0, 1).to(device), text, noise.to(device), index.to(device)


def _repeat(values: Tensor, times: int) -> Tensor:
    return values if times == 1 else values.repeat(times, *[1] * (values.ndim - 1))
