"""What a dataset must fulfil before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steer.core.errors import TuneError


if TYPE_CHECKING:
    from steer.tune.dataset import Dataset, Pairs

_SPLITS = ("train", "test")
_CHUNK = 256


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first few names, and how many more."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def check_score(column: str, values: NDArray[np.float64], ids: Sequence[str]) -> None:
    """Raise TuneError naming the images whose score is not finite."""
    bad = [ids[int(i)] for i in np.flatnonzero(~np.isfinite(values))]
    if bad:
        raise TuneError(
            f"{column}: not finite for {len(bad)} of {len(ids)} images: {listed(bad)}; score them "
            "again, or leave them out of the dataset"
        )


def check_index(data: Dataset) -> None:
    """Raise TuneError for a table of images that contradicts itself or the manifest."""
    count = data.manifest.get("count", len(data))
    if count != len(data) or not len(data):
        raise TuneError(
            f"data={str(data.folder)!r}: index.parquet has {len(data)} images, the manifest says "
            f"{count}; make the dataset again"
        )
    twice = [name for name, n in Counter(data.ids).items() if n > 1]
    if twice:
        raise TuneError(f"id: the same for several images: {listed(twice)}; ids must differ")
    odd = sorted(set(data.split.tolist()) - set(_SPLITS))
    if odd:
        raise TuneError(f"split={odd[0]!r}: must be 'train' or 'test'")
    prompt_of: dict[int, str] = {}
    for number, text in zip(data.prompt_ids.tolist(), data.prompts, strict=True):
        if prompt_of.setdefault(number, text) != text:
            raise TuneError(
                f"prompt_id={number}: stands for {prompt_of[number]!r} and for {text!r}; one "
                "number per prompt"
            )


def check_pairs(data: Dataset, table: Mapping[str, Any]) -> Pairs:
    """The pairs as rows of the index; TuneError for pairs that are none.

    Refused: images that are not in the index, images of different prompts, a winner that is its
    own loser (by id, or because the latents are equal), margins that are not finite.
    """
    from steer.tune.dataset import Pairs

    row_of = {name: row for row, name in enumerate(data.ids)}
    sides = {}
    for side in ("winner", "loser"):
        lost = [name for name in table[side] if name not in row_of]
        if lost:
            raise TuneError(f"pairs.parquet: {side} {listed(lost)} not in index.parquet")
        sides[side] = np.array([row_of[name] for name in table[side]], dtype=np.int64)
    winner, loser = sides["winner"], sides["loser"]
    _check_prompts(data, winner, loser, np.asarray(table["prompt_id"], dtype=np.int64))
    margin = np.array([np.nan if m is None else m for m in table["margin"]], dtype=np.float64)
    check_score("margin", margin, table["winner"])
    _check_differ(data, winner, loser)
    split = np.asarray(table.get("split", data.split[winner]), dtype=np.str_)
    return Pairs(winner, loser, margin, split)


def _check_prompts(
    data: Dataset, winner: NDArray[Any], loser: NDArray[Any], prompt: NDArray[Any]
) -> None:
    across = np.flatnonzero(
        (data.prompt_ids[winner] != data.prompt_ids[loser]) | (data.prompt_ids[winner] != prompt)
    )
    if len(across):
        i = int(across[0])
        raise TuneError(
            f"pairs.parquet: {data.ids[winner[i]]!r} has no counterpart in {data.ids[loser[i]]!r}, "
            f"which is of another prompt ({data.prompts[winner[i]]!r}, "
            f"{data.prompts[loser[i]]!r}); {len(across)} such pair(s): pair images of one prompt"
        )


def _check_differ(data: Dataset, winner: NDArray[Any], loser: NDArray[Any]) -> None:
    """Refuse equal images: by id, and by their latents, a few hundred pairs at a time."""
    same = [data.ids[i] for i in winner[winner == loser]]
    for start in range(0, 0 if same else len(winner), _CHUNK):
        rows = slice(start, start + _CHUNK)
        equal = data.latents(winner[rows]) == data.latents(loser[rows])
        same += [data.ids[winner[rows][i]] for i in equal.flatten(1).all(1).nonzero()[:, 0]]
    if same:
        raise TuneError(
            f"pairs.parquet: winner and loser are the same image in {len(same)} pair(s): "
            f"{listed(same)}; leave those pairs out"
        )
