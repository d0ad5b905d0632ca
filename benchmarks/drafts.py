"""How coarse may a draft be, and where should it be cut? Plans replayed on training captions.

    python benchmarks/drafts.py --captions 16

Under a deterministic sampler a particle's path does not depend on the others: plans with strides
are replayed on recordings of particles that took the same strides, as `plan.py` does without. Per
kind of draft the table has what its images are worth, how soon its previews know (Spearman with the
final reward of the same particle), and the best plans at each budget. The plan of
`Prune.for_compute(..., drafts=True)` was chosen here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from methods import GUIDANCE, STEPS, halved
from methods_settings import recorded
from plan import replay
from scipy import stats
from tqdm.auto import tqdm

import steer
from steer.core.types import Population, Search
from steer.methods import Prune
from steer.search.context import Context
from steer.search.method import Method
from steer.search.short_runs import run, short_grid


KINDS = ((12, 3), (12, 4), (12, 5), (12, 7))
BUDGETS = (2, 4)


@dataclass(frozen=True)
class Sketch(Method):
    """All particles in strides up to step `first`, then step by step with every preview scored."""

    n: int
    first: int
    through: int

    def cost(self, steps: int) -> int:
        return self.n * (self.through - 1 + steps - self.first)

    def __call__(self, ctx: Context, start: Population) -> Search:
        finished = []
        for part in ctx.groups(start):
            grid = short_grid(ctx.steps[: self.first], self.through - 1)
            now = part.at((yield from run(ctx, part, grid, part.x.dtype)).to(part.x.dtype))
            solver = ctx.solver(now)
            for step in ctx.steps[self.first :]:
                output = yield from ctx.denoise(now, step)
                ctx.evaluate(now.at(step.x0(now.x, output)), step)
                now = now.at(solver.step(step, now.x, output, now.ids))
            finished.append(now)
        return ctx.winners(Population.join(finished))


def record(
    guided: steer.Guided, prompts: list[str], sketch: Sketch
) -> tuple[np.ndarray, np.ndarray]:
    """Preview rewards `(captions, steps, particles)`, NaN before the draft ends, and final ones."""
    seen = np.full((len(prompts), STEPS, sketch.n), np.nan)
    last = np.full((len(prompts), sketch.n), np.nan)
    for caption, prompt in enumerate(tqdm(prompts, desc=repr(sketch))):
        out = guided(
            prompt,
            method=sketch,
            generator=torch.Generator().manual_seed(caption),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="latent",
        )
        for row in out.report.trace.of("score"):
            target = seen[caption, row["step"]] if row["preview"] else last[caption]
            target[row["particle"]] = row["reward"]
    return seen, last


def plans(first: int, through: int, rows: int, most: int) -> Iterator[Prune]:
    """Plans of one or two cuts, the first at `first`, each as wide as `rows` pay for."""
    for last in (None, first + 1, first + 2, first + 3):
        cuts = [first] if last is None else [first, last]
        at = tuple((cut + 1) / STEPS for cut in cuts)
        sizes = [(k,) for k in (1, 2, 3)]
        if last is not None:
            sizes = [(k, j) for k in (2, 3, 4, 6, 8, 12) for j in (1, 2, 3) if j < k]
        for keep in sizes:
            widest = [
                n
                for n in range(keep[0] + 1, most + 1)
                if Prune(n, keep, at, through).cost(STEPS) <= rows
            ]
            if widest:
                yield Prune(widest[-1], keep, at, through)


def best_plans(
    kind: tuple[int, int], previews: np.ndarray, finals: np.ndarray, most: int
) -> list[dict[str, Any]]:
    """The three best at every budget, and how many there were."""
    found = []
    for budget in BUDGETS:
        rated = []
        for plan in plans(*kind, budget * STEPS, most):
            rewards = replay(plan, previews, finals)
            rated.append((float(rewards.mean()), recorded(plan), plan.cost(STEPS)))
        rated.sort(reverse=True)
        best = [{"plan": p, "rows": c, "reward": round(r, 5)} for r, p, c in rated[:3]]
        found.append({"budget": budget, "plans": len(rated), "best": best})
    return found


def describe(kind: tuple[int, int], previews: np.ndarray, finals: np.ndarray) -> dict[str, Any]:
    """One kind of draft."""
    first, through = kind
    ranks = {
        str(step): common.interval(
            np.nan_to_num(
                [stats.spearmanr(a, b)[0] for a, b in zip(previews[:, step], finals, strict=True)]
            )
        )
        for step in range(first, min(first + 4, STEPS))
    }
    return {
        "first": first,
        "through": through,
        "reward": common.interval(finals.mean(1)),
        "best_of_all": common.interval(finals.max(1)),
        "spearman_by_step": ranks,
        "plans": best_plans(kind, previews, finals, finals.shape[1]),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--particles", type=int, default=24)
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    pipe = steer.shapes.pipeline(device=args.device)
    pipe.set_progress_bar_config(disable=True)
    halved(pipe, args.device == "cpu")
    guided = steer.guided(pipe, reward="shapes", lane_width=16)
    prompts = steer.shapes.prompts("train", args.captions, seed=11)
    table = []
    for kind in KINDS:
        previews, finals = record(guided, prompts, Sketch(args.particles, *kind))
        table.append(describe(kind, previews, finals))
        row = table[-1]
        print(f"{kind}: reward {row['reward']['mean']:.4f}, best {row['plans'][-1]['best'][0]}")
        out = args.out or common.RESULTS / f"drafts_{common.hardware()}.json"
        common.write_json(
            out,
            {
                "study": "drafts",
                **common.provenance(),
                "captions": args.captions,
                "particles": args.particles,
                "table": table,
            },
        )


if __name__ == "__main__":
    main()
