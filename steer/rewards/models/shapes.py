"""The bundled world's own rewards: `"shapes"`, its preference scorer, and `"shapes-clip"`.

Both are open_clip models in the package; the recipe is in the world's model card.
"""

from __future__ import annotations

from pathlib import Path

import torch

from steer.core.errors import CheckpointError
from steer.rewards.clip.fused import Fused
from steer.rewards.models.clip import ClipReward, clip


def shapes(
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    fused: Fused = None,
) -> ClipReward:
    """The preference scorer of the shapes world: cosine in [-1, 1], higher is better.

    Args:
        checkpoint: Another model folder of the same kind, or none for the packaged one.
        device: Default: the accelerator if there is one.
        dtype: Precision of the weights; default float32.
        batch: Most images scored at once.
        fused: As for `clip`.

    Raises:
        ValueError: `fused` where it cannot be.
        CheckpointError: The folder is missing, corrupt or does not fit.
    """
    model = f"local-dir:{_folder(checkpoint, 'scorer')}"
    return clip(model, device=device, dtype=dtype, batch=batch, name="shapes", fused=fused)


def shapes_clip(
    *,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 32,
    fused: Fused = None,
) -> ClipReward:
    """The contrastive model of the shapes world, before preference tuning; as `shapes`."""
    model = f"local-dir:{_folder(checkpoint, 'clip')}"
    return clip(model, device=device, dtype=dtype, batch=batch, name="shapes-clip", fused=fused)


def _folder(checkpoint: str | Path | None, name: str) -> Path:
    from steer.shapes import weights_folder

    folder = Path(checkpoint) if checkpoint is not None else weights_folder() / name
    if not folder.is_dir():
        raise CheckpointError(
            f"model folder {str(folder)!r} does not exist: reinstall steer, or pass "
            "checkpoint=FOLDER (as `python -m recipes.shapes_world` writes it)"
        )
    return folder
