"""A few pairs of many: wide margins, and prompts unlike those that are kept already.

FiFA (arXiv:2410.10166) trains on half a percent of a large set of pairs, chosen by the margin of a
proxy reward, by the quality of the text, and by what a prompt adds to the entropy of all prompts,
for which the distance to its nearest neighbours stands. Here the nearest one that is kept counts,
so that of equal prompts one stays; the quality of texts is not judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from steer.tune.tables import PROMPT_IDS


Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

FARTHEST, NEAREST = 2.0, 1e-3
"""Between unit vectors; nearer ones count as equal."""


def prompt_features(folder: Path) -> dict[int, Floats]:
    """A vector of length 1 for every prompt of a set, by its number.

    The mean over tokens of what the denoiser is told, each tensor centred over the prompts.
    """
    parts: dict[str, list[Floats]] = {}
    numbers: list[int] = []
    for path in sorted(folder.glob("text-0*.safetensors")):
        tensors = load_file(path)
        numbers += tensors.pop(PROMPT_IDS).tolist()
        for name, value in tensors.items():
            if value.is_floating_point() and value.ndim > 1:
                flat = value.float().flatten(1, -2).mean(1) if value.ndim > 2 else value.float()
                parts.setdefault(name, []).append(flat.numpy())
    found = np.concatenate([_unit(np.concatenate(rows)) for rows in parts.values()], axis=1)
    return dict(zip(numbers, _unit(found, centre=False), strict=True))


def most_diverse(
    margin: NDArray[np.float64],
    prompt: Ints,
    features: Mapping[int, Floats],
    weight: float,
    count: int,
) -> Ints:
    """Rising places of `count` pairs, taken one by one.

    Each next pair has the largest margin, in standard deviations, plus `weight` times the logarithm
    of its prompt's distance from the nearest prompt that is kept already.

    Args:
        margin: (M,) of the pairs.
        prompt: (M,) their prompts' numbers.
        features: Of prompts, as `prompt_features` gives them.
        weight: Of diversity.
        count: At most M.
    """
    numbers, place = np.unique(prompt, return_inverse=True)
    vectors = np.stack([features[int(number)] for number in numbers])
    gain = margin / (margin.std() or 1.0)
    nearest = np.full(len(numbers), FARTHEST)
    open_, kept = np.ones(len(margin), dtype=bool), []
    for _ in range(count):
        score = np.where(open_, gain + weight * np.log(nearest)[place], -np.inf)
        best = int(score.argmax())
        open_[best] = False
        kept.append(best)
        cosine = vectors @ vectors[place[best]]
        away = np.sqrt(np.maximum(2 - 2 * cosine, 0))
        nearest = np.minimum(nearest, np.maximum(away, NEAREST))
    return np.sort(np.array(kept, dtype=np.int64))


def _unit(rows: Floats, centre: bool = True) -> Floats:
    """Rows of length 1, about their mean."""
    rows = rows - rows.mean(0) if centre else rows
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
