"""Text features of marked prompts, for conditional fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer.core.errors import TuneError
from steer.tune.data.features import Features
from steer.tune.dataset import Dataset
from steer.tune.labels import Labels


_BATCH = 8


def marked_features(
    pipe: Any, data: Dataset, labels: Labels, mark: str
) -> dict[int, dict[str, Tensor]]:
    """What replaces the text features of bad images: those of their prompts after `mark`.

    Args:
        pipe: The pipeline the dataset was made with.
        data: Whose manifest says how the pipeline was called.
        labels: Of all images.
        mark: Put before the prompts.

    Returns:
        By row of the bad images: tensors by denoiser argument, without batch dimension.

    Raises:
        TuneError: The features do not have the shapes of the dataset's.
    """
    bad = np.flatnonzero(labels.labels.numpy() == 0)
    texts = sorted({data.prompts[row] for row in bad})
    found = _features(pipe, [mark + text for text in texts], call_arguments(data), texts[0])
    like = data.text(bad[:1])
    for name, stored in like.items():
        given = found.get(name)
        if given is None or given.shape[1:] != stored.shape[1:]:
            raise TuneError(
                f"objective.mark={mark!r}: {name} of marked prompts has shape "
                f"{None if given is None else tuple(given.shape[1:])}, the dataset's has "
                f"{tuple(stored.shape[1:])}; use the pipeline that made the dataset"
            )
    found = {name: found[name].to(stored.dtype) for name, stored in like.items()}
    place = {text: i for i, text in enumerate(texts)}
    return {
        int(row): {name: value[place[data.prompts[row]]] for name, value in found.items()}
        for row in bad
    }


def call_arguments(data: Dataset) -> dict[str, Any]:
    """How the dataset's pipeline was called, but for prompts and generators."""
    stated = {
        "num_inference_steps": data.manifest.get("steps"),
        "guidance_scale": data.manifest.get("guidance"),
        "negative_prompt": data.manifest.get("negative_prompt") or None,
    }
    extra = data.manifest.get("config", {}).get("call", {})
    return {**{k: v for k, v in stated.items() if v is not None}, **extra}


def _features(
    pipe: Any, prompts: Sequence[str], arguments: dict[str, Any], other: str
) -> dict[str, Tensor]:
    features = Features(pipe, arguments, (prompts[0], other))
    parts = [features(prompts[i : i + _BATCH]) for i in range(0, len(prompts), _BATCH)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
