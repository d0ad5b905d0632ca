"""Checkpoints that a run continues from, bit for bit, and refuses to mix up."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from steer.core.errors import TuneError, first_line
from steer.core.files.atomic import write_json
from steer.tune.config import TuneConfig
from steer.tune.dataset import Dataset
from steer.tune.logs import save_state
from steer.tune.tables import INDEX, MANIFEST, PAIRS


FOLDER, STATE, META = "checkpoints", "state.pt", "meta.json"
_FREE = ("out", "keep", "checkpoint_every", "validation", "cpu", "data")
"""Settings that a resumed run may change: they do not reach the weights. (The data is compared by
its contents.)"""


def fingerprint(data: Dataset) -> str:
    """A hash of the dataset's manifest and tables."""
    digest = hashlib.sha256()
    for name in (MANIFEST, INDEX, PAIRS):
        path = data.folder / name
        digest.update(name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()[:16]


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (out / FOLDER).glob(f"step-*/{META}"))


def save(out: Path, step: int, state: Mapping[str, Any], config: TuneConfig, data: str) -> Path:
    """Write a checkpoint after `step` updates, whole or not at all; drop all but the last ones."""
    folder = out / FOLDER / f"step-{step:07d}"
    partial = folder.parent / f".partial-{folder.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_state({**state, "step": step}, partial / STATE)
    write_json(partial / META, {"step": step, "config": config.to_dict(), "data": data})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    for old in checkpoints(out)[: -config.keep]:
        shutil.rmtree(old)
    return folder


def load(folder: Path, config: TuneConfig, data: str) -> dict[str, Any]:
    """The state in a checkpoint, after seeing that it is of this configuration and dataset.

    Raises:
        TuneError: It cannot be read, or was made with other settings or data; the message lists
            every difference.
    """
    try:
        meta = json.loads((folder / META).read_text("utf-8"))
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damage makes it raise
        raise TuneError(
            f"checkpoint={str(folder)!r}: cannot be read ({first_line(error)}); delete it to "
            "continue from the one before"
        ) from error
    changed = differences(_completed(meta["config"]), _plain(config))
    if meta["data"] != data:
        changed.append("the dataset's contents")
    if changed:
        raise TuneError(
            f"out={config.out!r}: holds a run with other settings: {'; '.join(changed)}. Use "
            "another folder, or the same settings"
        )
    return state


def _completed(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """An earlier version's settings with the defaults of those that came since."""
    try:
        return _plain(TuneConfig.from_dict(settings))
    except TuneError:  # it had settings, or values, that are gone: shown as they are
        return settings


def _plain(config: TuneConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """`name: was -> is` for every setting that reaches the weights and is not the same."""
    found: list[str] = []
    for name in [*new, *(key for key in old if key not in new)]:
        was, now = old.get(name), new.get(name)
        free = not where and (name in _FREE or _longer(name, old, new))
        if was == now or free:
            continue
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += differences(was, now, f"{where}{name}.")
        else:
            found.append(f"{where}{name}: {was!r} -> {now!r}")
    return found


def _longer(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """More steps are the same run for longer, unless the learning rate depends on how many."""
    same = old.get("schedule") == new.get("schedule") == "constant"
    return name == "steps" and same and new["steps"] > old["steps"]
