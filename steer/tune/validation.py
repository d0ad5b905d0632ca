"""Looks at a run on the way: a grid of images, and the loss on images it does not train on."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from steer.core.files.png import save_png
from steer.tune.config import ValidationConfig
from steer.tune.dataset import Dataset


FOLDER = "validation"
EVALUATION = 1
"""The tag of the randomness of measurements, apart from training's."""


def test_rows(data: Dataset, pairs: bool, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Up to `count` rows (or pairs) of the split "test", spread evenly over it."""
    split = data.pairs.split if pairs and data.pairs is not None else data.split
    rows = np.flatnonzero(split == "test")
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def draw_column(pipe: Any, config: ValidationConfig, device: torch.device) -> list[Image.Image]:
    """One image per prompt, with the seed `seed + k`, by the pipeline as it is now."""
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    known = inspect.signature(type(pipe).__call__).parameters
    given = {"num_inference_steps": config.steps, "guidance_scale": config.guidance_scale}
    arguments = {k: v for k, v in given.items() if v is not None and k in known}
    images = []
    for k, prompt in enumerate(config.prompts):
        generator = torch.Generator().manual_seed(config.seed + k)
        with torch.no_grad():
            images.append(pipe(prompt, generator=generator, **arguments).images[0].convert("RGB"))
    return images


def write_grid(out: Path, step: int, column: list[Image.Image], config: ValidationConfig) -> Path:
    """Write the grid of a step: a row per prompt; left what step 0 drew (the base), right this.

    Returns:
        The PNG, whose text chunk holds prompts, seed and step.
    """
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    first = out / FOLDER / "step-0000000.png"
    here = _grid(column, 1)
    if step and first.is_file():
        with Image.open(first) as base:
            if base.size == here.size:
                here = _grid([base.convert("RGB"), here], 2)
    path = out / FOLDER / f"step-{step:07d}.png"
    data = {"prompts": list(config.prompts), "seed": config.seed, "step": step}
    save_png(path, here, data)
    return path


def _grid(images: list[Image.Image], columns: int) -> Image.Image:
    from diffusers.utils.pil_utils import make_image_grid

    return make_image_grid(images, rows=len(images) // columns, cols=columns)
