"""The bundled world: captions of coloured shapes, a pipeline that paints them, and an oracle.

pipe = steer.shapes.pipeline()              # a StableDiffusionPipeline, offline
steer.shapes.oracle(images, prompt)         # one Verdict(fraction, all_met, notes) per image
steer.shapes.prompts(count=8)               # captions of combinations never seen in training
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steer.core.errors import CheckpointError
from steer.shapes.captions import caption, parse
from steer.shapes.oracle import Verdict, neatness, oracle
from steer.shapes.scenes import Split, sample_spec


if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

__all__ = [
    "Verdict",
    "caption",
    "neatness",
    "oracle",
    "parse",
    "pipeline",
    "prompts",
    "weights_folder",
]


def weights_folder() -> Path:
    """The folder of the packaged weights: `pipeline/`, `tiny/`, `clip/` and `scorer/`."""
    return Path(__file__).parent / "weights"


def pipeline(device: str = "cpu") -> StableDiffusionPipeline:
    """The world's StableDiffusionPipeline, float32, from the packaged safetensors.

    Raises:
        CheckpointError: the weights are not there (a source tree without them).
    """
    from diffusers import StableDiffusionPipeline

    folder = weights_folder() / "pipeline"
    if not (folder / "model_index.json").exists():
        raise CheckpointError(
            f"{folder} holds no pipeline: train the world with `python -m recipes.shapes_world`"
        )
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    return pipe.to(device)


def prompts(split: Split = "held_out", count: int = 200, seed: int = 0) -> list[str]:
    """`count` different canonical captions of a split's combinations, the same every time.

    Raises:
        ValueError: `count` is more than the split has captions to offer.
    """
    rng = np.random.default_rng([seed, 23])
    found: dict[str, None] = {}
    for _ in range(200 * count):
        if len(found) == count:
            return list(found)
        found.setdefault(caption(sample_spec(rng, split)))
    raise ValueError(f"count={count}: split {split!r} has only about {len(found)} captions")
