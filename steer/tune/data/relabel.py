"""Other labels on samples that are there: other margins or balance, nothing drawn again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from steer.core.errors import TuneError
from steer.tune.data.config import DataConfig
from steer.tune.data.folder import Folder
from steer.tune.data.index import finish
from steer.tune.tables import INDEX, MANIFEST, SHARED, arrow


_KEPT = ("pipeline", "rewards", "device", "dtype")
_CALL = ("steps", "guidance", "negative_prompt", "seeds", "seed")


def relabel(config: DataConfig, folder: Folder) -> Path:
    """A set with `config`'s labels on the samples of the finished set `config.samples`.

    Latents and text features are hard links to the other folder's, or copies where links cannot be.

    Raises:
        TuneError: There is no finished set, or no pair is left.
    """
    source = Path(config.samples or "").expanduser()
    manifest = _read_manifest(source)
    if source.resolve() == folder.path.resolve():
        raise TuneError(f"out={str(source)!r}: the same folder as samples; name another")
    digest = hashlib.sha256((source / INDEX).read_bytes()).hexdigest()[:16]
    folder.begin({"config": config.labelling(), "samples": {"index_sha256": digest}})
    if folder.finished:
        return folder.path
    table = arrow()[1].read_table(source / INDEX)
    texts = sorted(path.name for path in source.glob("text-*.safetensors"))
    names = sorted(set(table.column("shard").to_pylist()))
    for name in [*names, *texts]:
        folder.adopt(source, name)
    provenance = {name: manifest[name] for name in _KEPT if name in manifest}
    provenance |= {name: manifest[name] for name in _CALL if name in manifest}
    provenance["samples"] = {"folder": str(source), "index_sha256": digest}
    provenance["config"] = {**manifest["config"], **config.labelling()}
    return finish(config, folder, table, provenance)


def _read_manifest(source: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((source / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TuneError(
            f"samples={str(source)!r}: holds no finished set ({error}); finish it with "
            "`steer tune data` first"
        ) from error
    missing = [name for name in (INDEX, SHARED) if not (source / name).is_file()]
    if missing or "rewards" not in manifest:
        raise TuneError(
            f"samples={str(source)!r}: without {(missing or ['rewards'])[0]}; it was not made by "
            "`steer tune data`"
        )
    return manifest
