"""Where should `compute=` cut? Pruning plans replayed on recorded previews of training captions.

    PILOTS=benchmarks/results/pilots_cpu2.json
    python benchmarks/previews.py --split train --captions 48 --out $PILOTS
    python benchmarks/plan.py --pilots $PILOTS

Under a deterministic sampler a particle's path does not depend on the others, so every plan can be
replayed exactly on one recording: draw its particles from the recorded ones, many times, cut by the
recorded previews, and look at the final reward of the winner. The plan that `Prune.for_compute`
takes was chosen here, on captions of the training split.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import common
import numpy as np

from steer import Prune


DRAWS = 400
FRACTIONS = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)


def replay(plan: Prune, previews: np.ndarray, finals: np.ndarray, seed: int = 0) -> np.ndarray:
    """Mean final reward of the plan's winner per caption, `(captions,)`.

    Args:
        plan: What is replayed.
        previews: `(captions, steps, particles)`.
        finals: `(captions, particles)`.
        seed: Of the draws, which are the same for every plan of the same start.
    """
    captions, steps, particles = previews.shape
    rng = np.random.default_rng(seed)
    drawn = np.argsort(rng.random((DRAWS, particles)), 1)[:, : plan.start]
    alive = np.broadcast_to(drawn, (captions, *drawn.shape))
    rows = np.arange(captions)[:, None, None]
    for step, keep in sorted(plan.cuts(steps).items()):
        order = np.argsort(-previews[rows, step, alive], -1, kind="stable")[..., :keep]
        alive = np.take_along_axis(alive, order, -1)
    return finals[rows, alive].max(-1).mean(-1)


def plans(rows: int, steps: int, most: int) -> Iterator[Prune]:
    """Plans of one or two cuts, each with the widest start, up to `most`, that `rows` pay for."""
    for cuts in (1, 2):
        for at in combinations(FRACTIONS, cuts):
            for keep in {(1,), (2,), (3,), (4,)} if cuts == 1 else _pairs(most):
                start = max(
                    (n for n in range(keep[0] + 1, most + 1) if _cost(n, keep, at, steps) <= rows),
                    default=0,
                )
                if start:
                    yield Prune(start, keep, at)


def _pairs(most: int) -> list[tuple[int, ...]]:
    return [(a, b) for a in range(2, most) for b in range(1, a)]


def _cost(start: int, keep: tuple[int, ...], at: tuple[float, ...], steps: int) -> int:
    return Prune(start, keep, at).cost(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=common.headline(__doc__))
    parser.add_argument("--pilots", type=Path, required=True)
    parser.add_argument("--compute", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pilots = json.loads(args.pilots.read_text())
    previews, finals = np.array(pilots["previews"]), np.array(pilots["finals"])
    steps, particles = previews.shape[1:]
    content: dict[str, Any] = {"study": "plan", **common.provenance(), "budgets": []}
    for compute in args.compute:
        base = replay(Prune(compute, (compute,), (0.5,)), previews, finals)
        found = []
        for plan in plans(compute * steps, steps, particles):
            gain = replay(plan, previews, finals) - base
            found.append({"plan": repr(plan), "rows": plan.cost(steps), **common.interval(gain)})
        found.sort(key=lambda row: -row["mean"])
        planned = Prune.for_compute(compute, steps)
        gain = common.interval(replay(planned, previews, finals) - base)
        content["budgets"].append(
            {
                "compute": compute,
                "best_of_n": round(float(base.mean()), 5),
                "planned": {"plan": repr(planned), "rows": planned.cost(steps), **gain},
                "plans": len(found),
                "best": found[:12],
            }
        )
    common.write_json(args.out or common.RESULTS / f"plan_{common.hardware()}.json", content)


if __name__ == "__main__":
    main()
