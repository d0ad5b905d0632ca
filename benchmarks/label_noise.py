"""Preference sets with deliberately wrong labels, for `tuned.py`: exact shares, nested by size.

A noisy set shares latents and text features with the clean one (hard links), so that clean and
noisy labels are compared on the same images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steer.core.files.atomic import write_json
from steer.tune.tables import INDEX, MANIFEST, PAIRS, arrow


def chosen_share(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    """(count,) bool, `round(share * count)` of them true; a larger share includes a smaller one."""
    order = np.random.default_rng([seed, 47]).permutation(count)
    chosen = np.zeros(count, dtype=bool)
    chosen[order[: round(share * count)]] = True
    return chosen


def reflect(scores: NDArray[np.float64], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scores with the chosen ones reflected about the median of all: good becomes as bad."""
    return np.where(chosen, 2 * np.median(scores) - scores, scores)


def noisy_pairs(clean: Path, out: Path, share: float, seed: int = 0) -> Path:
    """The paired set `clean` with a share of its pairs swapped (`flipped` is true there).

    Args:
        clean: A finished set with pairs.
        out: The folder to make; one that is finished is left as it is.
        share: Of the pairs, in [0, 1]; the count is exact.
        seed: Of the choice.
    """
    if (out / MANIFEST).is_file():
        return out
    pyarrow, parquet = arrow()
    table = parquet.read_table(clean / PAIRS)
    chosen = chosen_share(table.num_rows, share, seed)
    winner, loser = (np.array(table.column(side).to_pylist()) for side in ("winner", "loser"))
    margin = table.column("margin").to_numpy()
    swapped = {
        "winner": np.where(chosen, loser, winner).tolist(),
        "loser": np.where(chosen, winner, loser).tolist(),
        "margin": np.where(chosen, -margin, margin),
    }
    for name, values in swapped.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, pyarrow.array(values))
    table = table.append_column("flipped", pyarrow.array(chosen))
    return _write(clean, out, PAIRS, table, {"flipped": int(chosen.sum()), "noise": share})


def noisy_scores(clean: Path, out: Path, share: float, seed: int = 0) -> Path:
    """The scored set `clean` with a share of its scores reflected; `clean_score` keeps the true.

    Args:
        clean: A finished scored set.
        out: The folder to make; one that is finished is left as it is.
        share: Of the images, in [0, 1]; the count is exact.
        seed: Of the choice.
    """
    if (out / MANIFEST).is_file():
        return out
    pyarrow, parquet = arrow()
    table = parquet.read_table(clean / INDEX)
    scores = table.column("score").to_numpy()
    chosen = chosen_share(len(scores), share, seed)
    at = table.column_names.index("score")
    table = table.set_column(at, "score", pyarrow.array(reflect(scores, chosen)))
    table = table.append_column("clean_score", pyarrow.array(scores))
    table = table.append_column("flipped", pyarrow.array(chosen))
    return _write(clean, out, INDEX, table, {"reflected": int(chosen.sum()), "noise": share})


def _write(clean: Path, out: Path, name: str, table: Any, noise: dict[str, Any]) -> Path:
    """Links to the clean set's files, the table in place of its own, the manifest last."""
    out.mkdir(parents=True, exist_ok=True)
    for path in clean.iterdir():
        if path.is_file() and path.name not in (name, MANIFEST, "begun.json"):
            (out / path.name).unlink(missing_ok=True)
            (out / path.name).hardlink_to(path)
    arrow()[1].write_table(table, out / name, compression="zstd")
    manifest = json.loads((clean / MANIFEST).read_text("utf-8"))
    write_json(out / MANIFEST, {**manifest, "label_noise": {"clean": str(clean), **noise}})
    return out
