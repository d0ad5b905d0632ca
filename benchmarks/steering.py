"""Is steering worth its compute? Arms on the bundled world, held-out captions, held-out judge.

    python benchmarks/steering.py --captions 200 --seeds 1

Every arm runs the same captions from the same generators, so arms are compared caption by caption.
The reward is what the methods see; the oracle judges what nobody optimised.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from tqdm.auto import tqdm

import steer
from steer.search.method import Method


STEPS, GUIDANCE, BATCH = 20, 3.5, 8


def arms(threshold: float) -> dict[str, Method]:
    """What is compared; Prune costs at most what BestOfN(4) does, Gate what BestOfN(16) does.

    `8-4-2` has the published cuts, `4x` the cuts that `compute=4` plans.
    """
    return {
        "base": steer.BestOfN(1),
        "BestOfN(4)": steer.BestOfN(4),
        "Prune 8-4-2": steer.Prune(8, (4, 2), (0.25, 0.5)),
        "Prune 4x": steer.Prune.for_compute(4, STEPS),
        "BestOfN(16)": steer.BestOfN(16),
        "Prune 16x": steer.Prune.for_compute(16, STEPS),
        "Gate": steer.Gate(steer.BestOfN(4), threshold=threshold, max_rounds=4),
    }


def run_arm(pipe: Any, method: Method, prompts: list[str], seed: int, name: str) -> dict[str, Any]:
    """All captions through one method: `BATCH` prompts a call, or one where prompts stop early."""
    alone = isinstance(method, steer.Gate)
    batch = 1 if alone else BATCH
    guided = steer.guided(pipe, reward="shapes", lane_width=method.populations[0] if alone else 1)
    rows: list[dict[str, Any]] = []
    cost = dict.fromkeys(("denoiser_rows", "decodes", "reward_calls"), 0)
    start = time.perf_counter()
    for i in tqdm(range(0, len(prompts), batch), desc=f"{name}, seed {seed}"):
        texts = prompts[i : i + batch]
        generators = [torch.Generator().manual_seed(seed * 100_003 + i + k) for k in range(batch)]
        out = guided(
            texts,
            method=method,
            generator=generators[: len(texts)],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="pt",
        )
        images = out.images.cpu().float()
        for k, verdict in enumerate(steer.shapes.oracle(images, texts)):
            rows.append(
                {
                    "prompt": texts[k],
                    "reward": round(out.rewards[k], 6),
                    "all_met": verdict.all_met,
                    "fraction": round(verdict.fraction, 4),
                    "accepted": bool(out.accepted[k]),
                }
            )
        for key in cost:
            cost[key] += getattr(out.report.ledger, key)
    seconds = round(time.perf_counter() - start, 2)
    return {"method": repr(method), "seed": seed, "cost": cost, "seconds": seconds, "rows": rows}


def pilot_threshold(pipe: Any, captions: int) -> float:
    """The 80th percentile of plain images' rewards on training captions: what a gate asks for."""
    prompts = steer.shapes.prompts("train", captions, seed=1)
    run = run_arm(pipe, steer.BestOfN(1), prompts, seed=77, name="pilot")
    return round(float(np.quantile([row["reward"] for row in run["rows"]], 0.8)), 4)


def summarise(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Per arm: means with intervals over captions (seeds averaged first), paired with the base."""
    table = []
    for name, repeats in runs.items():
        line: dict[str, Any] = {"arm": name, "method": repeats[0]["method"]}
        for key in ("reward", "all_met", "fraction"):
            values = _per_caption(repeats, key)
            line[key] = common.interval(values)
            if name != "base":
                line[f"{key}_gain"] = common.interval(values - _per_caption(runs["base"], key))
        images = sum(len(run["rows"]) for run in repeats)
        for key in ("denoiser_rows", "decodes", "reward_calls"):
            line[key] = round(sum(run["cost"][key] for run in repeats) / images, 3)
        line["seconds"] = round(sum(run["seconds"] for run in repeats) / images, 4)
        table.append(line)
    return table


def versus(runs: dict[str, list[dict[str, Any]]], arm: str, other: str) -> dict[str, Any]:
    """Paired difference `arm` minus `other`."""
    return {
        key: common.interval(_per_caption(runs[arm], key) - _per_caption(runs[other], key))
        for key in ("reward", "all_met", "fraction")
    }


def _per_caption(repeats: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.mean([[float(row[key]) for row in run["rows"]] for run in repeats], axis=0)


def finish(content: dict[str, Any]) -> dict[str, Any]:
    """Raw runs with their table and the comparisons at equal compute on top."""
    runs = content["runs"]
    for arm, other in (("Prune 4x", "BestOfN(4)"), ("Prune 16x", "BestOfN(16)")):
        if arm in runs and other in runs:
            content[f"{arm} minus {other}"] = versus(runs, arm, other)
    return {**content, "table": summarise(runs) if "base" in runs else [], "runs": runs}


def merge(paths: list[Path]) -> dict[str, Any]:
    """One result of several that ran different arms on the same captions and seeds.

    Raises:
        ValueError: The results differ in what they ran on.
    """
    parts = [json.loads(path.read_text()) for path in paths]
    for key in ("captions", "seeds", "sampler", "gate_threshold", "threads", "versions"):
        if any(part[key] != parts[0][key] for part in parts):
            raise ValueError(f"{key} differs: {[part[key] for part in parts]}")
    runs = {name: run for part in parts for name, run in part["runs"].items()}
    whole = {**parts[0], "command": [part["command"] for part in parts], "runs": runs}
    return finish(whole)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", default="", help="names, split by ';'; all by default")
    parser.add_argument("--merge", type=Path, nargs="*", help="join results of different arms")
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    path = args.out or common.RESULTS / f"steering_{common.hardware()}.json"
    if args.merge:
        common.write_json(path, merge(args.merge))
        return
    pipe = steer.shapes.pipeline(device=args.device)
    pipe.set_progress_bar_config(disable=True)
    threshold = pilot_threshold(pipe, 96)
    chosen = arms(threshold)
    if args.arms:
        chosen = {name: chosen[name] for name in args.arms.split(";")}
    prompts = steer.shapes.prompts("held_out", args.captions, seed=0)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in range(args.seeds):
        for name, method in chosen.items():
            runs[name].append(run_arm(pipe, method, prompts, seed, name))
    content = {
        "study": "steering",
        **common.provenance(),
        "sampler": f"DDIM, {STEPS} steps, guidance {GUIDANCE}",
        "captions": args.captions,
        "seeds": args.seeds,
        "gate_threshold": threshold,
        "runs": runs,
    }
    common.write_json(path, finish(content))


if __name__ == "__main__":
    main()
