"""Do gates pay, and do stepwise gates keep their promise? Replayed from one recorded pool.

    python benchmarks/gate.py --captions 200 --seeds 1

For every held-out caption, `POOL` particles run to the end once, with their previews scored on the
way and the finished images judged by the oracle. Gates only choose among particles, so every policy
is replayed from that pool exactly (a few captions are run through the real methods to show it).
The threshold is the 80th percentile of plain images' rewards on training captions; cuts are
calibrated on one particle per caption of a random half and judged on the other half.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
from gate_pool import CALL, GUIDANCE, POOL, STEPS, Pool, generator, record

import steer
from steer import Threshold
from steer.core.errors import ThresholdError
from steer.rewards import Calibration


ALPHAS = (0.02, 0.05, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Outcome:
    """One caption under one policy."""

    chosen: int
    rows: int
    decodes: int


def best_of(pool: Pool, caption: int, n: int) -> Outcome:
    """`BestOfN(n)`."""
    return Outcome(int(pool.finals[caption, :n].argmax()), n * STEPS, n)


def gate(pool: Pool, caption: int, tau: float, n: int) -> Outcome:
    """`Gate(BestOfN(n), tau, max_rounds=POOL // n)`."""
    cleared = np.flatnonzero(pool.finals[caption] >= tau)
    rounds = cleared[0] // n + 1 if len(cleared) else POOL // n
    return best_of(pool, caption, int(rounds) * n)


def step_gate(pool: Pool, caption: int, calibration: Calibration, n: int) -> Outcome:
    """`Gate(BestOfN(n), calibration=calibration, max_rounds=POOL // n)`."""
    tau, finals = calibration.threshold.tau, pool.finals[caption]
    columns = [pool.steps.index(k) for k in calibration.steps]
    ended: list[int] = []
    rows = decodes = 0
    for first in range(0, POOL, n):
        lacking = int(first + n >= POOL and not ended)
        alive, before = list(range(first, first + n)), 0
        for step, column, cut in zip(calibration.steps, columns, calibration.cuts, strict=True):
            rows += len(alive) * (step + 1 - before)
            before = step + 1
            if len(alive) > lacking:
                decodes += len(alive)
                ranked = sorted(alive, key=lambda p, k=column: -pool.previews[caption, p, k])
                margins = pool.previews[caption, ranked, column] - tau
                alive = ranked[: max(int((margins >= cut).sum()), lacking)]
            if not alive:
                break
        rows += len(alive) * (STEPS - before)
        decodes += len(alive)
        ended += alive
        if any(finals[p] >= tau for p in alive):
            break
    return Outcome(max(sorted(ended), key=lambda p: finals[p]), rows, decodes)


def halves(captions: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Random halves of the captions, and a particle for each of the first half."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        order = rng.permutation(captions)
        half = captions // 2
        yield order[:half], order[half:], rng.integers(0, POOL, half)


def promise(
    pools: list[Pool], threshold: Threshold, alpha: float, columns: list[int], splits: int
) -> dict[str, Any]:
    """Wrongly-dropped rate on the other half, over many random halves."""
    counts, skipped = [], 0
    for pool in pools:
        for own, other, particles in halves(len(pool.prompts), splits):
            try:
                pilots = pool.pilots(own, particles, columns)
                calibration = Calibration.fit(pilots, threshold, alpha)
            except ThresholdError:  # too few accepted pilots for this alpha
                skipped += 1
                continue
            at = [pool.steps.index(k) for k in calibration.steps]
            margins = pool.previews[other][..., at] - threshold.tau
            below = margins < np.array(calibration.cuts)
            gone, good = below.any(-1), pool.finals[other] >= threshold.tau
            calls = np.where(gone, np.array(calibration.steps)[below.argmax(-1)] + 1, STEPS)
            wrong = int((gone & good).sum()), int(good.sum())
            right = int((gone & ~good).sum()), int((~good).sum())
            counts.append((*wrong, *right, calls.mean() / STEPS, calibration.accepted))
    line: dict[str, Any] = {
        "alpha": alpha,
        "steps": [pools[0].steps[k] for k in columns],
        "calibrations": len(counts),
        "too_few_pilots": skipped,
    }
    if not counts:
        return line
    wrong, good, right, bad, rows, accepted = np.array(counts, dtype=float).T
    rates = wrong[good > 0] / good[good > 0]
    return {
        **line,
        "accepted_pilots": round(float(accepted.mean()), 1),
        "wrongly_dropped": round(float(wrong.sum() / max(good.sum(), 1)), 5),
        "over_calibrations_5_95": np.round(np.quantile(rates, (0.05, 0.95)), 5).tolist()
        if len(rates)
        else None,
        "rejects_dropped": round(float(right.sum() / max(bad.sum(), 1)), 5),
        "rows_left": round(float(rows.mean()), 5),
    }


Policy = Callable[[Pool, int], Outcome]


def measures(pool: Pool, caption: int, outcome: Outcome, tau: float) -> list[float]:
    """Accepted, reward, all_met, fraction, rows, decodes."""
    k, reward = outcome.chosen, pool.finals[caption, outcome.chosen]
    oracle = pool.all_met[caption, k], pool.fraction[caption, k]
    return [float(reward >= tau), reward, *oracle, outcome.rows, outcome.decodes]


MEASURES = ("accepted", "reward", "all_met", "fraction", "rows", "decodes")


def at_compute(pools: list[Pool], tau: float, n: float) -> np.ndarray:
    """Best-of-N for a mean of `n` images, `(captions, measures)`: between two whole numbers."""
    low = int(np.clip(np.floor(n), 1, POOL - 1))
    share = min(max(n - low, 0.0), 1.0)
    whole = [averaged(pools, tau, lambda pool, c, m=m: best_of(pool, c, m)) for m in (low, low + 1)]
    return (1 - share) * whole[0] + share * whole[1]


def averaged(pools: list[Pool], tau: float, policy: Policy) -> np.ndarray:
    """A policy's measures per caption, means over the seeds: `(captions, measures)`."""
    return np.mean(
        [
            [measures(pool, c, policy(pool, c), tau) for c in range(len(pool.prompts))]
            for pool in pools
        ],
        axis=0,
    )


def stepwise(
    pools: list[Pool], threshold: Threshold, alpha: float, n: int, splits: int
) -> np.ndarray | None:
    """That gate per caption, over the calibrations that the caption had no part in."""
    captions = len(pools[0].prompts)
    total, count = np.zeros((captions, len(MEASURES))), np.zeros((captions, 1))
    columns = list(range(len(pools[0].steps)))
    for pool in pools:
        for own, other, particles in halves(captions, splits):
            try:
                pilots = pool.pilots(own, particles, columns)
                calibration = Calibration.fit(pilots, threshold, alpha)
            except ThresholdError:
                continue
            for c in other:
                outcome = step_gate(pool, c, calibration, n)
                total[c] += measures(pool, c, outcome, threshold.tau)
                count[c] += 1
    return total / count if count.all() else None


def table(
    pools: list[Pool], threshold: Threshold, alpha: float, splits: int
) -> list[dict[str, Any]]:
    """Every policy, and best-of-N for the same mean denoiser rows."""
    tau = threshold.tau
    found: dict[str, np.ndarray | None] = {
        f"BestOfN({n})": averaged(pools, tau, lambda pool, c, n=n: best_of(pool, c, n))
        for n in (1, 2, 4, 8, POOL)
    }
    for n in (1, 2, 4):
        found[f"Gate(BestOfN({n}), max_rounds={POOL // n})"] = averaged(
            pools, tau, lambda pool, c, n=n: gate(pool, c, tau, n)
        )
    for n in (1, 2, 4):
        name = f"StepGate({n}, max_rounds={POOL // n}), alpha={alpha:g}"
        found[name] = stepwise(pools, threshold, alpha, n, splits)
    lines = []
    for name, values in found.items():
        if values is None:
            lines.append({"policy": name, "skipped": f"too few accepted pilots for alpha={alpha}"})
            continue
        line: dict[str, Any] = {"policy": name}
        line |= {key: common.interval(values[:, i]) for i, key in enumerate(MEASURES)}
        if not name.startswith("BestOfN"):
            other = at_compute(pools, tau, float(values[:, 4].mean()) / STEPS)
            line["minus best-of-N at equal rows"] = {
                key: common.interval(values[:, i] - other[:, i])
                for i, key in enumerate(MEASURES[:4])
            }
        lines.append(line)
    return lines


def replayed(
    pipe: Any, pool: Pool, seed: int, calibration: Calibration, captions: int
) -> list[dict[str, Any]]:
    """Real runs of real methods beside their replay."""
    tau = calibration.threshold.tau
    methods: list[tuple[steer.Gate, Policy]] = [
        (
            steer.Gate(steer.BestOfN(2), calibration.threshold, POOL // 2),
            lambda pool, c: gate(pool, c, tau, 2),
        ),
        (
            steer.Gate(steer.BestOfN(2), calibration=calibration, max_rounds=POOL // 2),
            lambda pool, c: step_gate(pool, c, calibration, 2),
        ),
    ]
    lines = []
    for method, policy in methods:
        guided = steer.guided(pipe, reward="shapes", method=method, lane_width=1)
        for c in range(captions):
            out = guided(
                pool.prompts[c], generator=generator(seed, c), output_type="latent", **CALL
            )
            expected, ledger = policy(pool, c), out.report.ledger
            found = Outcome(out.report.chosen[0][1], ledger.denoiser_rows, ledger.reward_calls)
            lines.append(
                {
                    "method": "Gate" if method.calibration is None else "StepGate",
                    "caption": c,
                    "run": vars(found),
                    "replay": vars(expected),
                    "agree": found == expected,
                }
            )
    return lines


def analysis(pools: list[Pool], threshold: Threshold, args: argparse.Namespace) -> dict[str, Any]:
    """Rates for single steps and for all together, and the policies."""
    columns = list(range(len(pools[0].steps)))
    sets = [*([k] for k in columns), columns]
    return {
        "wrongly_dropped": [
            promise(pools, threshold, alpha, chosen, args.splits)
            for chosen in sets
            for alpha in ALPHAS
        ],
        "policies": table(pools, threshold, args.alpha, min(args.splits, 20)),
    }


def checks(pipe: Any, pool: Pool, threshold: Threshold, args: argparse.Namespace) -> list[Any]:
    """`replayed` for a few captions, with a calibration of the pool's own."""
    own, _, particles = next(halves(len(pool.prompts), 1))
    try:
        pilots = pool.pilots(own, particles, list(range(len(pool.steps))))
        calibration = Calibration.fit(pilots, threshold, args.alpha)
    except ThresholdError as error:
        return [str(error)]
    return replayed(pipe, pool, 0, calibration, min(args.check, len(pool.prompts)))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--alpha", type=float, default=0.1, help="of the stepwise policies")
    parser.add_argument("--pilots", type=int, default=96, help="training captions for tau")
    parser.add_argument("--splits", type=int, default=200, help="random calibration halves")
    parser.add_argument("--check", type=int, default=3, help="captions to run for real as well")
    parser.add_argument("--again", type=Path, help="analyse the pools of an earlier result anew")
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    path = args.out or common.RESULTS / f"gate_{common.hardware()}.json"
    if args.again:
        old = json.loads(args.again.read_text())
        pools = [Pool.of(old["prompts"], raw) for raw in old["pools"]]
        threshold = Threshold.from_dict(old["threshold"])
        common.write_json(path, {**old, **analysis(pools, threshold, args)})
        return
    pipe = steer.shapes.pipeline(device=args.device)
    pipe.set_progress_bar_config(disable=True)
    guided = steer.guided(pipe, reward="shapes", lane_width=min(8, POOL), keep_images=True)
    training = steer.shapes.prompts("train", args.pilots, seed=1)
    plain = steer.pipeline.pilots(guided, training, seed=77 * 100_003, batch=8, **CALL)
    threshold = Threshold.fit(plain.scores(), 0.8)
    prompts = steer.shapes.prompts("held_out", args.captions, seed=0)
    pools = [record(guided, prompts, seed) for seed in range(args.seeds)]
    content = {
        "study": "gate",
        **common.provenance(),
        "sampler": f"DDIM, {STEPS} steps, guidance {GUIDANCE}",
        "captions": args.captions,
        "seeds": args.seeds,
        "pool": POOL,
        "threshold": threshold.to_dict(scores=False),
        **analysis(pools, threshold, args),
        "replay": checks(pipe, pools[0], threshold, args),
        "prompts": prompts,
        "pools": [pool.raw() for pool in pools],
    }
    common.write_json(path, content)


if __name__ == "__main__":
    main()
