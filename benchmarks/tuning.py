"""Which settings should be the defaults? Candidates at one budget, on training captions.

    python benchmarks/tuning.py --group climb --compute 8

Raw lines go to `results/tuning.jsonl`. Held-out captions are never touched: `methods.py` measures
on them what was chosen here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
from methods import BATCH, STEPS, Unit, work
from methods_arms import best_then_climb

import steer
from steer import at, between
from steer.methods import NoiseOptimization, Sphere
from steer.search.method import Method


RAW = common.RESULTS / "tuning.jsonl"


def _fitted(compute: int, **settings: Any) -> Method:
    """Noise optimisation with as many iterations as the budget pays for."""
    method = NoiseOptimization(**settings)
    return replace(method, iterations=method.iterations_for(compute, STEPS))


def _reference(c: int) -> list[Method]:
    return [steer.BestOfN(1), steer.BestOfN(c), steer.Prune.for_compute(c, STEPS)]


def _climb(c: int) -> list[Method]:
    return [
        _fitted(c),
        _fitted(c, ascent=Sphere(step=0.05)),
        _fitted(c, ascent=Sphere(step=0.2)),
        _fitted(c, through=6),
        _fitted(c, through=8),
        best_then_climb(c, STEPS),
    ]


def _smc(n: int) -> list[Method]:
    base, late = steer.SMC(n), at(0.4, 0.5, 0.6, 0.7, 0.8)
    return [
        base,
        replace(base, eta=0.5),
        replace(base, lam=6.0, when=late),
        replace(base, lam=6.0, when=late, eta=0.5),
    ]


def _moves(c: int) -> list[Method]:
    block, beam = steer.methods.Blockwise(c), steer.methods.Beam.for_compute(c, STEPS)
    return [
        block,
        replace(block, eta=0.5),
        replace(block, block=10),
        replace(block, block=10, eta=0.5),
        beam,
        replace(beam, eta=0.5),
    ]


def _guidance(c: int) -> list[Method]:
    pulled = steer.methods.BestOfNGuidance(c)
    led = steer.Guide(steer.BestOfN(c), when=between(0.4, 0.7))
    return [
        led,
        replace(led, strength=0.05),
        replace(led, strength=0.2),
        replace(led, when=between(0.5, 0.8)),
        pulled,
        replace(pulled, when=at(0.5)),
        replace(pulled, when=at(0.5), pull=0.5),
        steer.methods.LookaheadGuidance.for_compute(c, STEPS),
    ]


def _guide(c: int) -> list[Method]:
    windows = [(0.5, 0.8, x) for x in (0.1, 0.05, 0.2)]
    windows += [(0.5, 0.95, 0.1), (0.5, 0.95, 0.05), (0.35, 0.95, 0.1), (0.65, 0.95, 0.1)]
    base = steer.Guide.for_compute(c, STEPS)
    return [replace(base, when=between(low, high), strength=x) for low, high, x in windows]


def _draft(c: int) -> list[Method]:
    base = steer.Prune.for_compute(c, STEPS, drafts=True)
    windows = [(0.7, 0.95, 0.1), (0.65, 0.95, 0.1), (0.7, 1.0, 0.1), (0.7, 0.95, 0.2)]
    led = [steer.Guide(base, x, between(low, high)) for low, high, x in windows]
    return [
        base,
        steer.Prune.for_compute(c, STEPS),
        *led,
        steer.Guide(steer.Prune.for_compute(c, STEPS)),
    ]


GROUPS: dict[str, Callable[[int], list[Method]]] = {
    "reference": _reference,
    "climb": _climb,
    "smc": _smc,
    "moves": _moves,
    "guidance": _guidance,
    "guide": _guide,
    "draft": _draft,
}


def table(path: Path) -> str:
    """Mean reward and oracle rate of every candidate, and its gain over best-of-N, by caption."""
    runs: dict[tuple[float, str], dict[tuple[int, int], dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        where = runs.setdefault((row["compute"], row["settings"]), {})
        where[row["caption"], row["seed"]] = row
    lines = []
    for (compute, settings), own in sorted(runs.items()):
        plain = runs.get((compute, repr(steer.BestOfN(int(compute)))), {})
        shared = sorted(own.keys() & plain.keys())
        gain = [own[k]["reward"] - plain[k]["reward"] for k in shared]
        met = 100 * np.mean([row["oracle"] for row in own.values()])
        spent = np.mean([row["rows"] + 2 * row["backwards"] for row in own.values()]) / STEPS
        reward = np.mean([row["reward"] for row in own.values()])
        seconds = np.mean([row["seconds"] for row in own.values()])
        found = common.interval(gain) if gain else None
        beats = f"{found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]" if found else ""
        lines.append(
            f"{compute:4g}x {spent:5.2f} {len(own):4d} {reward:.4f} {met:5.1f}% {seconds:6.2f}s "
            f"{beats}  {settings}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--group", choices=sorted(GROUPS), nargs="*", default=list(GROUPS))
    parser.add_argument("--compute", type=int, default=8)
    parser.add_argument("--captions", type=int, default=32, help=f"a multiple of {BATCH}")
    parser.add_argument("--compile", action="store_true", help="torch.compile the denoiser")
    parser.add_argument("--raw", type=Path, default=RAW)
    parser.add_argument("--show", action="store_true", help="only print the table")
    args = common.parsed(parser)
    if not args.show:
        prompts = steer.shapes.prompts("train", args.captions, seed=5)
        batches = range(args.captions // BATCH)
        units = [
            Unit(group, float(args.compute), method, batch, 0)
            for group in args.group
            for method in dict.fromkeys(GROUPS[group](args.compute))
            for batch in batches
        ]
        work(units, prompts, args.raw, args.device, args.compile)
    print(table(args.raw))


if __name__ == "__main__":
    main()
