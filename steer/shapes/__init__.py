"""The bundled world: captions of coloured shapes, pipelines that paint them, and an oracle.

pipe = steer.shapes.pipeline()              # a StableDiffusionPipeline, offline
pipe = steer.shapes.pipeline("flow")        # a StableDiffusion3Pipeline of the same world
pipe = steer.shapes.pipeline("turbo")       # one to eight steps
steer.shapes.oracle(images, prompt)         # one Verdict(fraction, all_met, notes) per image
steer.shapes.prompts(count=8)               # captions of combinations never seen in training
"""

from __future__ import annotations

import numpy as np

from steer.shapes.captions import caption, parse
from steer.shapes.oracle import Verdict, neatness, oracle
from steer.shapes.scenes import Split, sample_spec
from steer.shapes.worlds import pipeline, weights_folder


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
