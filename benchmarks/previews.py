"""How soon does an x0 preview know? Spearman of preview rewards with final rewards, by step.

    python benchmarks/previews.py --captions 64 --particles 16

Within each held-out caption, particles are ranked by the reward of their preview at every step and
by their final reward; the curve says where a cut is worth making. Beside it, how often the
finally best particle is among the better half (or quarter) of the previews.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from scipy import stats
from tqdm.auto import tqdm

import steer
from steer.core.types import Population, Search
from steer.search.context import Context
from steer.search.method import Method


STEPS, GUIDANCE = 20, 3.5


@dataclass(frozen=True)
class Watch(Method):
    """Sample `n` particles to the end and score their previews at every step on the way."""

    n: int

    def cost(self, steps: int) -> int:
        return self.n * steps

    def __call__(self, ctx: Context, start: Population) -> Search:
        solver, now = ctx.solver(), start
        for step in ctx.steps:
            output = yield from ctx.denoise(now, step)
            ctx.evaluate(now.at(step.x0(now.x, output)), step)
            now = now.at(solver.step(step, now.x, output, now.ids))
        return ctx.winners(now)


def watch(
    guided: steer.Guided, prompts: list[str], particles: int
) -> tuple[np.ndarray, np.ndarray]:
    """Preview rewards `(captions, steps, particles)` and final ones `(captions, particles)`."""
    previews, finals = [], []
    for i, prompt in enumerate(tqdm(prompts, desc="captions")):
        out = guided(
            prompt,
            method=Watch(particles),
            generator=torch.Generator().manual_seed(i),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="latent",
        )
        seen = np.full((STEPS, particles), np.nan)
        last = np.full(particles, np.nan)
        for row in out.report.trace.of("score"):
            target = seen[row["step"]] if row["preview"] else last
            target[row["particle"]] = row["reward"]
        previews.append(seen)
        finals.append(last)
    return np.stack(previews), np.stack(finals)


def curve(previews: np.ndarray, finals: np.ndarray) -> list[dict[str, Any]]:
    """Per step: Spearman within captions with its interval, and how the best one ranks."""
    captions, steps, particles = previews.shape
    best = finals.argmax(1)
    rows = []
    for k in range(steps):
        rho = [stats.spearmanr(previews[c, k], finals[c])[0] for c in range(captions)]
        rank = [(previews[c, k] > previews[c, k, best[c]]).sum() for c in range(captions)]
        rows.append(
            {
                "step": k,
                "fraction": (k + 1) / steps,
                "spearman": common.interval(np.nan_to_num(rho)),
                "best_in_half": round(float(np.mean(np.array(rank) < particles / 2)), 3),
                "best_in_quarter": round(float(np.mean(np.array(rank) < particles / 4)), 3),
            }
        )
    return rows


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--split", choices=("train", "held_out"), default="held_out")
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    pipe = steer.shapes.pipeline(device=args.device)
    pipe.set_progress_bar_config(disable=True)
    guided = steer.guided(pipe, reward="shapes", lane_width=min(8, args.particles))
    prompts = steer.shapes.prompts(args.split, args.captions, seed=0)
    previews, finals = watch(guided, prompts, args.particles)
    result = {
        "study": "previews",
        **common.provenance(),
        "sampler": f"DDIM, {STEPS} steps, guidance {GUIDANCE}",
        "split": args.split,
        "captions": args.captions,
        "particles": args.particles,
        "curve": curve(previews, finals),
        "previews": np.round(previews, 4).tolist(),
        "finals": np.round(finals, 4).tolist(),
    }
    common.write_json(args.out or common.RESULTS / f"previews_{common.hardware()}.json", result)


if __name__ == "__main__":
    main()
