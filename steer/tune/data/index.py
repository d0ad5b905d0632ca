"""The last part of making a set: its table of images, its pairs, its manifest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from steer.core.errors import TuneError
from steer.core.files.versions import versions
from steer.rewards.families import warn_of_agreement
from steer.tune.checks import check_scores
from steer.tune.data.config import DataConfig
from steer.tune.data.diversity import prompt_features
from steer.tune.data.folder import Folder
from steer.tune.data.pairs import Pairing, Table, balance_rows, make_pairs
from steer.tune.tables import FORMAT, INDEX, MANIFEST, PAIRS


if TYPE_CHECKING:
    import pyarrow as pa


_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "I32": "int32"}
"""Of latents; whole numbers are tokens."""


def columns(rewards: Sequence[str]) -> dict[str, str]:
    """The column of every reward's scores; the first one's is `score`.

    Raises:
        TuneError: Two names that differ only in characters that columns do not have.
    """
    named = {n: "score_" + re.sub(r"[^A-Za-z0-9_]", "_", n) for n in rewards}
    named[rewards[0]] = "score"
    twice = [column for column, count in Counter(named.values()).items() if count > 1]
    if twice:
        raise TuneError(f"rewards={list(rewards)!r}: two of them would be {twice[0]!r}; drop one")
    return named


def finish(
    config: DataConfig, folder: Folder, table: pa.Table, provenance: Mapping[str, Any]
) -> Path:
    """Write `index.parquet`, `pairs.parquet` where pairs are asked for, and the manifest.

    Args:
        config: How to label.
        folder: Where latents and text features are already.
        table: All samples, in the index's columns.
        provenance: Further entries of the manifest; `rewards` is read.
    """
    names = list(provenance["rewards"])
    found = read_table(table, columns(names))
    if config.pairs is not None and config.pairs.diversity is not None:
        found.features = prompt_features(folder.path)
    check_scores(found.main, found.ids, f"reward {names[0]!r}")
    labels: dict[str, Any] = {"kind": "scored", "pairs": 0}
    if config.pairs is None:
        table = _balance(config, table, found)
    else:
        if config.pairs.consensus:
            warn_of_agreement(names)
        pairs = make_pairs(found, config.pairs, balance=config.balance)
        folder.write_table(PAIRS, _pair_columns(found, pairs))
        labels = {
            "kind": "pairs",
            "pairs": len(pairs),
            "left_out": pairs.dropped,
        }
    folder.write_arrow(INDEX, table)
    folder.write_json(MANIFEST, _manifest(config, folder, table, labels, provenance))
    return folder.path


def read_table(table: pa.Table, named: Mapping[str, str]) -> Table:
    """The samples' table as arrays; `named` gives the column of every reward."""
    searched = None
    if "searched" in table.column_names:
        searched = table.column("searched").to_numpy(zero_copy_only=False)
    return Table(
        table.column("id").to_pylist(),
        table.column("prompt_id").to_numpy(),
        {name: table.column(column).to_numpy() for name, column in named.items()},
        table.column("content").to_pylist(),
        table.column("split").to_pylist(),
        table.column("category").to_pylist(),
        searched,
    )


def _balance(config: DataConfig, table: pa.Table, found: Table) -> pa.Table:
    """As many prompts of every category, where that is asked for."""
    if not config.balance:
        return table
    rng = np.random.default_rng([config.seed, 53])
    groups = found.groups()
    kinds = [found.category[rows[0]] for rows in groups]
    return table.take(np.concatenate([groups[i] for i in balance_rows(kinds, rng, "prompts")]))


def _pair_columns(table: Table, pairs: Pairing) -> dict[str, Any]:
    return {
        "winner": [table.ids[row] for row in pairs.winner],
        "loser": [table.ids[row] for row in pairs.loser],
        "prompt_id": table.prompt_ids[pairs.winner],
        "margin": pairs.margin,
        "split": [table.split[row] for row in pairs.winner],
    }


def _manifest(
    config: DataConfig,
    folder: Folder,
    table: pa.Table,
    labels: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    first = folder.path / table.column("shard")[0].as_py()
    with safe_open(str(first), framework="pt") as file:
        latents = file.get_slice("latents")
        shape, dtype = latents.get_shape()[1:], latents.get_dtype()
    arguments = config.arguments()
    return {
        "format": FORMAT,
        **labels,
        "count": table.num_rows,
        "prompts": len(set(table.column("prompt_id").to_pylist())),
        "latent_shape": shape,
        "stored_dtype": _DTYPES[dtype],
        "steps": arguments.get("num_inference_steps"),
        "guidance": arguments.get("guidance_scale"),
        "negative_prompt": config.negative_prompt,
        "reward": next(iter(provenance["rewards"])),
        "columns": columns(list(provenance["rewards"])),
        "categories": dict(sorted(Counter(table.column("category").to_pylist()).items())),
        "seeds": config.seeds,
        "seed": config.seed,
        "config": {**config.sampling(), **config.labelling()},
        **provenance,
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
