"""Samples of several rounds as one dataset: nothing is copied but tables and text features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from steer.core.files.text import read_json
from steer.tune.data.folder import Folder, text_name
from steer.tune.dataset import PROMPT_IDS
from steer.tune.tables import INDEX, MANIFEST, PAIRS, SHARED, UNCOND, arrow


_APART = 1_000_000
"""Prompt numbers of one round are this far from the next one's."""


def pool(sets: Mapping[int, Path], out: Path) -> Path:
    """A dataset of all images of finished sets of `steer tune data`.

    Images are compared within their round: the same prompt has another number in every round, and
    ids get the round before them.

    Args:
        sets: By number of the round.
        out: The folder to make; left as it is where it is finished.

    Returns:
        `out`.

    Raises:
        TuneError: The folder holds something else, or the disk is full.
    """
    folder = Folder(out)
    folder.begin({"sets": {str(number): source.name for number, source in sets.items()}})
    if folder.finished:
        return folder.path
    pyarrow, parquet = arrow()
    images, pairs, texts = [], [], 0
    for number, source in sets.items():
        prefix = f"r{number:04d}-"
        table = parquet.read_table(source / INDEX)
        for name in sorted(set(table.column("shard").to_pylist())):
            folder.adopt(source, name, prefix + name)
        images.append(_renamed(table, number, ("id", "shard")))
        if (source / PAIRS).is_file():
            pairs.append(_renamed(parquet.read_table(source / PAIRS), number, ("winner", "loser")))
        for path in sorted(source.glob("text-[0-9]*.safetensors")):
            tensors = load_file(path)
            tensors[PROMPT_IDS] = tensors[PROMPT_IDS] + number * _APART
            folder.write_tensors(text_name(texts), tensors)
            texts += 1
    newest = sets[max(sets)]
    for name in (UNCOND, SHARED):
        if (newest / name).is_file():
            folder.adopt(newest, name)
    whole = pyarrow.concat_tables(images)
    if pairs:
        folder.write_arrow(PAIRS, pyarrow.concat_tables(pairs))
    folder.write_arrow(INDEX, whole)
    manifest: dict[str, Any] = read_json((newest / MANIFEST).read_bytes())
    counts = {"count": whole.num_rows, "pairs": sum(len(table) for table in pairs)}
    folder.write_json(MANIFEST, {**manifest, **counts, "rounds": sorted(sets)})
    return folder.path


def _renamed(table: Any, number: int, texts: tuple[str, ...]) -> Any:
    """The table with its round before names, and prompt numbers of its own."""
    pyarrow, _ = arrow()
    prefix = f"r{number:04d}-"
    for name in texts:
        place = table.column_names.index(name)
        values = [prefix + text for text in table.column(name).to_pylist()]
        table = table.set_column(place, name, pyarrow.array(values))
    place = table.column_names.index("prompt_id")
    ids = torch.tensor(table.column("prompt_id").to_pylist()) + number * _APART
    return table.set_column(place, "prompt_id", pyarrow.array(ids.tolist()))
