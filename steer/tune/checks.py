"""What data and trainers refuse, in one place: each message names the value and the way out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer.core.errors import RecordError, TuneError
from steer.core.files.atomic import plain, usable
from steer.core.files.folder import held
from steer.core.files.text import read_json


_SHOWN = 3


def histogram(scores: ArrayLike, bins: int = 8) -> str:
    """Scores in one line: `"0.2 to 0.25: 12, 0.25 to 0.3: 40"`; empty bins are left out."""
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    values = values[np.isfinite(values)]
    if not len(values):
        return "no finite score"
    if values.min() == values.max():
        return f"{values[0]:.6g}: {len(values)}"
    counts, edges = np.histogram(values, bins)
    found = zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return ", ".join(f"{low:.4g} to {high:.4g}: {n}" for n, low, high in found if n)


def check_scores(
    scores: ArrayLike, ids: Sequence[Any] | None = None, name: str = "score"
) -> NDArray[np.float64]:
    """Scores that a threshold can separate, as float64 of the same shape.

    Args:
        scores: Numbers of any shape.
        ids: One per score (flattened), for the message.
        name: What the scores are of.

    Raises:
        TuneError: None at all, one that is not finite (which), or all equal (the histogram).
    """
    values = np.asarray(scores, dtype=np.float64)
    if not values.size:
        raise TuneError(f"{name}: no scores; sample and score at least two images")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        where = [str(ids[i]) if ids is not None else f"number {i}" for i in bad[:_SHOWN]]
        raise TuneError(
            f"{name} is {values.reshape(-1)[bad[0]]} for {', '.join(where)} ({len(bad)} of "
            f"{values.size} are not finite): leave these images out, or score them again in float32"
        )
    if values.min() == values.max():
        raise TuneError(
            f"{name}: all {values.size} scores are equal, so no threshold separates them and no "
            f"image wins (histogram {histogram(values)}): use another reward, or images that differ"
        )
    return values


def check_enough(count: int, needed: int, what: str, way_out: str) -> None:
    """TuneError unless `count` of `what` are at least `needed`."""
    if count < needed:
        raise TuneError(f"{count} {what}, and {needed} are needed: {way_out}")


def read_record(path: Path) -> dict[str, Any]:
    """An object that a run wrote as JSON; TuneError where the file is damaged."""
    try:
        found = read_json(path.read_bytes())
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        raise TuneError(f"{str(path)!r}: damaged ({found!r:.80}); use another folder")
    return found


def check_unchanged(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to continue with another configuration.

    Args:
        folder: What is being continued, for the message.
        old, new: Nested settings; compared as JSON holds them.

    Raises:
        TuneError: They differ; every difference is named with both values.
    """
    before, now = _flat(plain(old)), _flat(plain(new))
    changed = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise TuneError(
            f"{str(folder)!r} was begun with another configuration: {'; '.join(changed)}. "
            "Use the same values to continue, or another folder to begin again"
        )


@contextmanager
def own_folder(out: str | Path) -> Iterator[Path]:
    """A run's folder, made where it is not there, with other processes kept out.

    Raises:
        TuneError: It cannot be read and written, or another process works in it.
    """
    folder = Path(out).expanduser()
    with ExitStack() as stack:
        try:
            usable(folder)
            stack.enter_context(held(folder))
        except (RecordError, OSError) as error:
            raise TuneError(f"out={str(folder)!r}: {error}") from error
        yield folder


def check_room(folder: Path, needed: int) -> None:
    """TuneError unless the disk that `folder` is on has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TuneError(
            f"out={str(folder)!r}: {needed / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB are "
            "free on this disk: free some, or name a folder on another one"
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    items = [_flat(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()]
    return {k: v for item in items for k, v in item.items()}
