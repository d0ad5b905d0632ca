"""Vision-language models from the hub or a folder, loaded once."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from steer.core.errors import CheckpointError, first_line
from steer.core.weights.reading import stamp
from steer.rewards.vlm.answers import Answerer


def open_answerer(
    model: str,
    checkpoint: str | Path | None,
    revision: str | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Answerer:
    """A model by its hub id, or from a local folder in its place; see `load_answerer`."""
    source = os.path.expanduser(checkpoint or model)
    return load_answerer(source, revision, folder_stamps(source), device, dtype)


@functools.lru_cache(maxsize=4)
def load_answerer(
    source: str,
    revision: str | None,
    stamps: tuple[Any, ...],
    device: torch.device,
    dtype: torch.dtype | None,
) -> Answerer:
    """Load a model and its processor; once per process for equal arguments.

    Args:
        source: Hub id or folder.
        revision: Commit, tag or branch on the hub.
        stamps: `folder_stamps(source)`, so that a rewritten folder is loaded again.
        device: Where it computes.
        dtype: Precision of the weights; `None` is the stored one.

    Raises:
        CheckpointError: Not found, not readable, not such a model, or weights are missing.
    """
    del stamps
    try:
        with torch.inference_mode(False):
            processor = AutoProcessor.from_pretrained(source, revision=revision)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                source, revision=revision, dtype=dtype or "auto", output_loading_info=True
            )
            model, info = loaded
            missing = sorted(info["missing_keys"])
            if not missing:
                return Answerer(model, processor, device)
    except Exception as error:  # transformers raises many kinds
        command = f"hf download {source}" + (f" --revision {revision}" if revision else "")
        raise CheckpointError(
            f"model {source!r} cannot be loaded ({type(error).__name__}: {first_line(error)}). It "
            "must be an image-text-to-text model of transformers: a folder with its weights, "
            f"config and processor, or a hub id; where there is a network, run `{command}`, then "
            "copy the cache, or pass checkpoint=FOLDER"
        ) from error
    raise CheckpointError(
        f"model {source!r}: {len(missing)} weights are missing ({', '.join(missing[:3])}, ...): "
        "download or copy the model again"
    )


def folder_stamps(source: str) -> tuple[Any, ...]:
    """Names, sizes and times of the files in a local model folder; empty for a hub id."""
    folder = Path(source)
    if not folder.is_dir():
        return ()
    return tuple((file.name, *stamp(file)) for file in sorted(folder.iterdir()) if file.is_file())
