"""Choices from a preference set of `steer tune data`: its pairs, decoded as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.core.errors import TuneError
from steer.core.weights.reading import fingerprint
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.decode import decode
from steer.rewards.clip.preprocess import Preprocess
from steer.tune.checks import check_enough
from steer.tune.dataset import Dataset
from steer.tune.scorer.source import ChoiceBatch


class LatentChoices:
    """Pairs of a finished preference set; its `test` split is held out.

    Args:
        data: The set.
        decoder: Latents `(B, ...)` as stored to images `(B, 3, H, W)` in [0, 1].
        preprocess: Of the model.

    Raises:
        TuneError: A set without pairs, or without a pair in one of its splits.
    """

    def __init__(
        self, data: Dataset, decoder: Callable[[Tensor], Tensor], preprocess: Preprocess
    ) -> None:
        if data.pairs is None:
            raise TuneError(
                f"data={str(data.folder)!r}: a scored set without pairs; make pairs of it with "
                "`steer tune data` (samples: this folder, pairs: {})"
            )
        self.data, self.decoder, self.preprocess = data, decoder, preprocess
        winner, loser = data.pairs.winner, data.pairs.loser
        both = np.stack([winner, loser], 1)
        self.train, self.test = both[data.pairs.split == "train"], both[data.pairs.split == "test"]
        for name, pairs in (("train", self.train), ("test", self.test)):
            way_out = f"data={str(data.folder)!r}: set test_share, or draw more samples"
            check_enough(len(pairs), 1, f"pairs in the split {name!r}", way_out)
        ids = torch.from_numpy(both)
        self.digest = fingerprint({"pairs": ids, "scores": torch.from_numpy(data.scores)})

    @classmethod
    def load(cls, folder: Path, preprocess: Preprocess, device: str) -> LatentChoices:
        """A folder, decoded by the pipeline that its manifest names, in float32."""
        from steer.jobs.pipelines import load_pipeline

        data = Dataset.load(folder)
        pipe = load_pipeline(data.manifest["pipeline"]["id"], device, torch.float32)
        call = data.manifest.get("config", {}).get("call", {})

        def decoder(latents: Tensor) -> Tensor:
            moved = latents.to(device, torch.float32)
            return decode(pipe, moved, asked=Asked(call)).cpu()

        return cls(data, decoder, preprocess)

    def batch(self, size: int, rng: np.random.Generator, noise: torch.Generator) -> ChoiceBatch:
        return self._load(self._draw(size, rng))

    def names(self, size: int, rng: np.random.Generator) -> Sequence[str]:
        return [self.data.ids[row] for row in self._draw(size, rng).flatten()]

    def held_out(self, size: int) -> Iterator[ChoiceBatch]:
        for start in range(0, len(self.test), size):
            yield self._load(self.test[start : start + size])

    def _draw(self, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        rows = rng.choice(len(self.train), min(size, len(self.train)), replace=False)
        return self.train[rows]

    def _load(self, pairs: NDArray[np.int64]) -> ChoiceBatch:
        images = self.decoder(self.data.latents(pairs.flatten()))
        shares = torch.tensor([1.0, 0.0]).repeat(len(pairs))
        texts = [self.data.prompts[row] for row in pairs[:, 0]]
        return ChoiceBatch(self.preprocess(images), (2,) * len(pairs), texts, shares, shares)
