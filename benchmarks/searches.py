"""RBF, EvoSearch and DepthFirst at about four plain calls, on 30 held-out captions.

    python benchmarks/searches.py --threads 1     # resumable
    python benchmarks/searches.py --show          # the figures of docs/results, of what there is

A first look, one seed: six captions a call, methods sized by `compute=4` in FLOPs. `best` is what
`BestOfN` gets for that, `best4` four candidates, `dfscal` a DepthFirst with the threshold of 48
training captions. Lines go to `results/searches.jsonl`.
"""

from __future__ import annotations

import json
from typing import Any

import common
import numpy as np
import torch

import steer


CAPTIONS, BATCH, STEPS = 30, 6, 20
RAW = common.RESULTS / "searches.jsonl"
ARMS = ("best", "rbf", "evo", "dfs", "dfscal", "best4")


def method_of(arm: str, guided: Any) -> dict[str, Any]:
    """The arguments of a guided call."""
    families: dict[str, Any] = {
        "best": steer.BestOfN,
        "rbf": steer.methods.RBF,
        "evo": steer.methods.EvoSearch,
        "dfs": steer.methods.DepthFirst,
    }
    if arm in families:
        return {"method": families[arm], "compute": 4}
    if arm == "best4":
        return {"method": steer.BestOfN(4)}
    train = steer.shapes.prompts("train", 48, seed=0)
    how = {"quantile": 0.7, "at": (0.5, 0.65), "alpha": 0.3, "batch": BATCH}
    threshold = steer.calibrate_gate(guided, train, **how, num_inference_steps=STEPS)
    return {"method": steer.methods.DepthFirst(4.0, threshold=threshold)}


def work(device: str) -> None:
    """Run the batches that are missing."""
    pipe = steer.shapes.pipeline(device=device)
    pipe.set_progress_bar_config(disable=True)
    guided = steer.guided(pipe, "shapes")
    texts = steer.shapes.prompts("held_out", CAPTIONS, seed=0)
    done = {(line["arm"], line["b"]) for line in lines()}
    for arm in ARMS:
        missing = [b for b in range(0, CAPTIONS, BATCH) if (arm, b) not in done]
        chosen = method_of(arm, guided) if missing else {}
        for first in missing:
            part = texts[first : first + BATCH]
            out = guided(
                part,
                **chosen,
                num_inference_steps=STEPS,
                generator=[torch.Generator().manual_seed(first + i) for i in range(BATCH)],
                output_type="pt",
            )
            ledger, verdicts = out.report.ledger, steer.shapes.oracle(out.images.float(), part)
            line = {
                "arm": arm,
                "method": repr(out.report.method)[:160],
                "b": first,
                "rewards": out.rewards,
                "met": [bool(verdict.all_met) for verdict in verdicts],
                "rows": ledger.denoiser_rows,
                "flops": sum(ledger.flops.values()) / ledger.plain_flops,
            }
            common.append_lines(RAW, [line])


def lines() -> list[dict[str, Any]]:
    """What is on disk."""
    return [json.loads(line) for line in RAW.read_text().splitlines()] if RAW.exists() else []


def show() -> None:
    """Every arm against both sizes of best-of-N."""
    found = {arm: [n for n in lines() if n["arm"] == arm] for arm in ARMS}
    rewards = {a: np.array([r for n in found[a] for r in n["rewards"]]) for a in ARMS if found[a]}
    for arm, own in rewards.items():
        met = sum(sum(n["met"]) for n in found[arm])
        spent = np.mean([n["flops"] for n in found[arm]])
        gaps = [common.interval(own - rewards[rival]) for rival in ("best", "best4")]
        words = ["{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**gap) for gap in gaps]
        print(f"{arm:7} {spent:.1f} calls, {own.mean():.3f}, {met} met, minus {words}")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--show", action="store_true", help="run nothing")
    args = common.parsed(parser)
    if not args.show:
        work(args.device)
    show()


if __name__ == "__main__":
    main()
