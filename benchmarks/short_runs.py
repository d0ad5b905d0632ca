"""Does a short run know what a full one will show? Rewards of the same noise at fewer steps.

    python benchmarks/short_runs.py --captions 16 --particles 12

Methods that climb or search through short runs (NoiseOptimization, NoiseSearch with `through`,
LookaheadGuidance) stand or fall with this. Training captions of the bundled world, plain calls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from methods import GUIDANCE, STEPS, halved
from methods_arms import Pool, finals
from scipy import stats

import steer


def rewards(pipe: Any, prompts: list[str], particles: int, steps: int) -> np.ndarray:
    """Final rewards `(captions, particles)` of plain runs of so many steps."""
    out = steer.guided(pipe, reward="shapes", lane_width=1)(
        prompts,
        method=Pool(0, particles),
        generator=[torch.Generator().manual_seed(1000 + k) for k in range(len(prompts))],
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        output_type="latent",
    )
    found = [finals(out.report.trace, number) for number in range(len(prompts))]
    return np.array([[own[k] for k in range(particles)] for own in found])


def line(short: np.ndarray, full: np.ndarray, steps: int) -> dict[str, Any]:
    """How well the short run ranks what the full one comes to, within captions."""
    ranks = np.array([stats.spearmanr(a, b)[0] for a, b in zip(short, full, strict=True)])
    picked = full[np.arange(len(full)), short.argmax(1)]
    return {
        "steps": steps,
        "reward": round(float(short.mean()), 4),
        "spread": round(float(short.std(1).mean()), 4),
        "spearman": common.interval(ranks),
        "full_reward_of_its_choice": round(float(picked.mean()), 4),
        "full_reward_of_the_best": round(float(full.max(1).mean()), 4),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--particles", type=int, default=12)
    parser.add_argument("--through", type=int, nargs="*", default=[4, 5, 6, 8, 10])
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    pipe = steer.shapes.pipeline().to(args.device)
    pipe.set_progress_bar_config(disable=True)
    halved(pipe)
    prompts = steer.shapes.prompts("train", args.captions, seed=9)
    full = rewards(pipe, prompts, args.particles, STEPS)
    table = [
        line(rewards(pipe, prompts, args.particles, steps), full, steps) for steps in args.through
    ]
    for row in table:
        print(row)
    out = args.out or common.RESULTS / f"short_runs_{common.hardware()}.json"
    common.write_json(out, {"study": "short_runs", **common.provenance(), "table": table})


if __name__ == "__main__":
    main()
