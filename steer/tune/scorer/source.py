"""Where batches of choices come from: image files, or anything with these methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from steer.core.errors import TuneError
from steer.core.files.png import open_image
from steer.rewards.clip.preprocess import Preprocess
from steer.rewards.inputs import as_batches
from steer.tune.scorer.choices import Choice


@dataclass(frozen=True)
class ChoiceBatch:
    """Choices, image by image and prompt by prompt.

    Attributes:
        pixels: `(sum(counts), 3, H, W)`, preprocessed for the model.
        counts: Images per prompt.
        texts: The prompts.
        target: `(sum(counts),)` shares, summing to 1 in every prompt.
        worth: `(sum(counts),)`: which image is better, for accuracies.
    """

    pixels: Tensor
    counts: tuple[int, ...]
    texts: list[str]
    target: Tensor
    worth: Tensor


class ChoiceSource(Protocol):
    """What a scorer is trained and measured on."""

    digest: str
    """Tells the data from other data."""

    def batch(self, size: int, rng: np.random.Generator, noise: torch.Generator) -> ChoiceBatch:
        """A random batch, wholly decided by the two generators."""
        ...

    def names(self, size: int, rng: np.random.Generator) -> Sequence[str]:
        """The names of what `batch` with the same generator holds."""
        ...

    def held_out(self, size: int) -> Iterator[ChoiceBatch]:
        """All held-out choices, in batches."""
        ...


class FileChoices:
    """Choices between image files, decoded by threads as they are asked for.

    Args:
        train, test: Choices.
        preprocess: Of the model.
        digest: See `ChoiceSource`.
    """

    def __init__(
        self,
        train: Sequence[Choice],
        test: Sequence[Choice],
        preprocess: Preprocess,
        digest: str,
    ) -> None:
        self.train, self.test = list(train), list(test)
        self.preprocess, self.digest = preprocess, digest
        self._pool = ThreadPoolExecutor()

    def batch(self, size: int, rng: np.random.Generator, noise: torch.Generator) -> ChoiceBatch:
        return self._load(self._draw(size, rng))

    def names(self, size: int, rng: np.random.Generator) -> list[str]:
        return [choice.name for choice in self._draw(size, rng)]

    def held_out(self, size: int) -> Iterator[ChoiceBatch]:
        for start in range(0, len(self.test), size):
            yield self._load(self.test[start : start + size])

    def _draw(self, size: int, rng: np.random.Generator) -> list[Choice]:
        """Different ones, in any order: HPS v2 shuffles images, and so does a drawn order."""
        rows = rng.choice(len(self.train), min(size, len(self.train)), replace=False)
        return [self.train[row] for row in rows]

    def _load(self, choices: Sequence[Choice]) -> ChoiceBatch:
        paths = [path for choice in choices for path in choice.images]
        pixels = torch.cat(list(self._pool.map(self._read, paths)))
        start = 0
        for choice in choices:
            own = pixels[start : start + len(choice.images)]
            start += len(own)
            if any(torch.equal(a, b) for a, b in combinations(own, 2)):
                raise TuneError(
                    f"{choice.name}: two of these images are the same, so nothing can be preferred "
                    "there; leave this choice out"
                )
        return ChoiceBatch(
            pixels,
            tuple(len(choice.images) for choice in choices),
            [choice.prompt for choice in choices],
            torch.tensor([share for choice in choices for share in choice.target]),
            torch.tensor([value for choice in choices for value in choice.worth]),
        )

    def _read(self, path: str) -> Tensor:
        try:
            with open_image(path) as image:
                (pixels,) = as_batches(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise TuneError(f"image {path!r}: cannot be read ({error}); leave it out") from error
        return self.preprocess(pixels)
