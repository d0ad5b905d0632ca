"""What a dataset must fulfil before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steer.core.errors import TuneError
from steer.tune.tables import Images, Pairs, list_names


_SPLITS = ("train", "test")
_CHUNK = 256


def check_score(column: str, values: NDArray[np.float64], ids: Sequence[str]) -> None:
    """Raise TuneError naming the images whose score is not finite."""
    bad = [ids[int(i)] for i in np.flatnonzero(~np.isfinite(values))]
    if bad:
        raise TuneError(
            f"{column}: not finite for {len(bad)} of {len(ids)} images: {list_names(bad)}; score "
            "them again, or leave them out of the dataset"
        )


def check_index(folder: Path, images: Images, count: int) -> None:
    """Raise TuneError for a table of images that contradicts itself or the manifest's `count`."""
    if count != len(images) or not len(images):
        raise TuneError(
            f"data={str(folder)!r}: index.parquet has {len(images)} images, the manifest says "
            f"{count}; make the dataset again"
        )
    twice = [name for name, n in Counter(images.ids).items() if n > 1]
    if twice:
        raise TuneError(f"id: the same for several images: {list_names(twice)}; ids must differ")
    odd = sorted(set(images.split.tolist()) - set(_SPLITS))
    if odd:
        raise TuneError(f"split={odd[0]!r}: must be 'train' or 'test'")
    prompt_of: dict[int, str] = {}
    for number, text in zip(images.prompt_ids.tolist(), images.prompts, strict=True):
        if prompt_of.setdefault(number, text) != text:
            raise TuneError(
                f"prompt_id={number}: stands for {prompt_of[number]!r} and for {text!r}; one "
                "number per prompt"
            )


def pairs_of(
    images: Images, table: Mapping[str, Any], latents: Callable[[NDArray[np.int64]], Tensor]
) -> Pairs:
    """The pairs as rows of the index.

    Args:
        images: The index.
        table: The columns of `pairs.parquet`.
        latents: Those of some rows, to tell equal images.

    Raises:
        TuneError: Images that are not in the index, images of different prompts, a winner that is
            its own loser (by id, or because the latents are equal), margins that are not finite.
    """
    row_of = {name: row for row, name in enumerate(images.ids)}
    sides = {}
    for side in ("winner", "loser"):
        lost = [name for name in table[side] if name not in row_of]
        if lost:
            raise TuneError(f"pairs.parquet: {side} {list_names(lost)} not in index.parquet")
        sides[side] = np.array([row_of[name] for name in table[side]], dtype=np.int64)
    winner, loser = sides["winner"], sides["loser"]
    _check_prompts(images, winner, loser, np.asarray(table["prompt_id"], dtype=np.int64))
    margin = np.array([np.nan if m is None else m for m in table["margin"]], dtype=np.float64)
    check_score("margin", margin, table["winner"])
    _check_differ(images, latents, winner, loser)
    split = np.asarray(table.get("split", images.split[winner]), dtype=np.str_)
    return Pairs(winner, loser, margin, split)


def _check_prompts(
    images: Images, winner: NDArray[Any], loser: NDArray[Any], prompt: NDArray[Any]
) -> None:
    of = images.prompt_ids
    across = np.flatnonzero((of[winner] != of[loser]) | (of[winner] != prompt))
    if len(across):
        i = int(across[0])
        one, other = int(winner[i]), int(loser[i])
        raise TuneError(
            f"pairs.parquet: {images.ids[one]!r} has no counterpart in {images.ids[other]!r}, "
            f"which is of another prompt ({images.prompts[one]!r}, {images.prompts[other]!r}); "
            f"{len(across)} such pair(s): pair images of one prompt"
        )


def _check_differ(
    images: Images,
    latents: Callable[[NDArray[np.int64]], Tensor],
    winner: NDArray[np.int64],
    loser: NDArray[np.int64],
) -> None:
    """Refuse equal images: by id, and by their latents, a few hundred pairs at a time."""
    same = [images.ids[i] for i in winner[winner == loser]]
    for start in range(0, 0 if same else len(winner), _CHUNK):
        rows = slice(start, start + _CHUNK)
        equal = latents(winner[rows]) == latents(loser[rows])
        same += [images.ids[winner[rows][i]] for i in equal.flatten(1).all(1).nonzero()[:, 0]]
    if same:
        raise TuneError(
            f"pairs.parquet: winner and loser are the same image in {len(same)} pair(s): "
            f"{list_names(same)}; leave those pairs out"
        )
