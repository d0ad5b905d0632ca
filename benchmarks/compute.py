"""What `compute=` buys: single-prompt calls against the best that a plain batched loop does.

    python benchmarks/compute.py --threads 1 --seeds 3    # resumable, any number of processes
    python benchmarks/compute.py --show                   # the summary of what there is

The loop is what a user writes by hand: `num_images_per_prompt=8`, fewer steps, a reward call per
batch, the best of all. At equal FLOPs it has as many images as its batches' denoiser rows, decodes
and scores leave it; at equal seconds as many as it makes in the time of the guided call (CPU time
of the process, which others disturb less). One line per caption and seed goes to
`results/compute.jsonl`, its arms run in an order that turns from unit to unit. The best of the
first n is read off the loop's images. Captions are held out, and the oracle, which nobody
optimises, judges.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import steer
from steer.core.costs import Costs
from steer.core.meter import FlopCounter


STEPS, GUIDANCE, BATCH = 20, 3.5, 8
BUDGETS = (2, 4, 8, 16)
LOOPS = {5: 64, 8: 48}
"""Images of the loop by number of steps: those that sixteen plain calls pay for."""
RAW = common.RESULTS / "compute.jsonl"
CLAIMS = Path("runs/compute")


def run(pipe: Any, guided: Any, reward: Any, caption: str, unit: int, seed: int) -> dict[str, Any]:
    """All arms on one caption, from generators of one seed."""
    arms: dict[str, Callable[[], dict[str, Any]]] = {
        **{f"compute={c}": partial(search, guided, caption, c, seed) for c in BUDGETS},
        **{f"loop {s}": partial(loop, pipe, reward, caption, s, seed) for s in LOOPS},
    }
    names = list(arms)
    turn = unit % len(names)
    return {name: arms[name]() for name in names[turn:] + names[:turn]}


def settings(steps: int, seed: int) -> dict[str, Any]:
    """What all calls are given."""
    return {
        "num_inference_steps": steps,
        "guidance_scale": GUIDANCE,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "pt",
    }


def search(guided: Any, caption: str, compute: int, seed: int) -> dict[str, Any]:
    """One guided call."""
    start = time.process_time()
    out = guided(caption, compute=compute, **settings(STEPS, seed))
    seconds = time.process_time() - start
    ledger = out.report.ledger
    return {
        "reward": round(out.rewards[0], 6),
        "oracle": verdicts(out.images, caption)[0],
        "spent": round(sum(ledger.flops.values()) / ledger.plain_flops, 4),
        "rows": ledger.denoiser_rows,
        "seconds": round(seconds, 4),
        "plan": repr(out.report.method),
    }


def loop(pipe: Any, reward: Any, caption: str, steps: int, seed: int) -> dict[str, Any]:
    """Images by hand, a batch at a time, and their rewards."""
    rewards: list[float] = []
    right: list[bool] = []
    seconds = 0.0
    given = settings(steps, seed)
    for _ in range(0, LOOPS[steps], BATCH):
        start = time.process_time()
        images = pipe(caption, num_images_per_prompt=BATCH, **given).images
        found = reward(images, [caption] * BATCH).tolist()
        seconds += time.process_time() - start
        rewards += [round(value, 6) for value in found]
        right += verdicts(images, caption)
    return {"rewards": rewards, "oracle": right, "seconds": round(seconds, 4)}


def verdicts(images: Tensor, caption: str) -> list[bool]:
    """Whether each image shows everything the caption says."""
    found = steer.shapes.oracle(images.cpu().float(), [caption] * len(images))
    return [bool(verdict.all_met) for verdict in found]


def costs(pipe: Any, reward: Any) -> Costs:
    """FLOPs of a denoiser row with guidance, of a decode and of a score: of two calls, counted."""
    totals = {}
    for steps in (2, 3):
        with FlopCounter() as counter:
            images = pipe("a red circle", **settings(steps, 0)).images
        totals[steps] = counter.total
    with FlopCounter() as scoring:
        reward(images, ["a red circle"])
    with FlopCounter() as decoding, torch.no_grad():
        pipe.vae.decode(torch.zeros(1, 4, 16, 16, device=pipe.device))
    row = float(totals[3] - totals[2])
    return Costs(
        row, float(decoding.total), float(decoding.total), float(scoring.total), unit="flops"
    )


def work(args: Any) -> None:
    """Run the units that are missing."""
    pipe = steer.shapes.pipeline(args.device)
    pipe.set_progress_bar_config(disable=True)
    reward = steer.reward("shapes")
    guided = steer.guided(pipe, reward)
    prompts = steer.shapes.prompts("held_out", args.captions, seed=0)
    about = costs(pipe, reward)
    for compute in BUDGETS:  # warm up: what costs and batches are like is seen once
        search(guided, "a red circle", compute, 0)
    places = [(s, i) for s in range(args.seeds) for i in range(args.captions)]
    for seed, index in tqdm(places):
        with common.claimed(CLAIMS / f"{seed}-{index}.lock") as mine:
            if not mine or (seed, index) in {(line["seed"], line["caption"]) for line in lines()}:
                continue
            own = 100_003 * seed + index
            found = run(pipe, guided, reward, prompts[index], own, own)
            plain = {"row": about.row, "decode": about.decode, "score": about.score}
            line = {"caption": index, "seed": seed, "flops": plain, "arms": found}
            common.append_lines(RAW, [line])


def lines() -> list[dict[str, Any]]:
    """What is on disk."""
    return [json.loads(line) for line in RAW.read_text().splitlines()] if RAW.exists() else []


def affordable(plain: Costs, steps: int, budget: float) -> int:
    """Images that the loop makes at a budget of FLOPs, in plain calls; at least one."""
    each = plain.plain(steps) + plain.score
    return max(1, math.floor(budget * plain.plain(STEPS) / each + 1e-9))


def in_time(arm: dict[str, Any], seconds: float) -> int:
    """Images that the loop makes in some seconds; at least one."""
    return max(1, math.floor(seconds / (arm["seconds"] / len(arm["rewards"]))))


def best(arm: dict[str, Any], count: int) -> tuple[float, bool]:
    """Reward and oracle of the best of the first `count` images."""
    rewards = arm["rewards"][:count]
    place = int(np.argmax(rewards))
    return rewards[place], arm["oracle"][place]


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Every budget against every loop, at equal FLOPs and at equal seconds; by caption."""
    plain = Costs(**found[0]["flops"], preview=found[0]["flops"]["decode"], unit="flops")
    table: dict[str, Any] = {}
    for budget in BUDGETS:
        mine = [line["arms"][f"compute={budget}"] for line in found]
        row: dict[str, Any] = {
            "plan": mine[0]["plan"],
            "spent": round(float(np.mean([m["spent"] for m in mine])), 3),
            "seconds": round(float(np.mean([m["seconds"] for m in mine])), 3),
            "oracle": common.interval(by_caption(found, [m["oracle"] for m in mine])),
            "reward": common.interval(by_caption(found, [m["reward"] for m in mine])),
        }
        for steps in LOOPS:
            theirs = [line["arms"][f"loop {steps}"] for line in found]
            sizes = {
                "equal FLOPs": [affordable(plain, steps, budget)] * len(found),
                "equal seconds": [
                    in_time(t, m["seconds"]) for t, m in zip(theirs, mine, strict=True)
                ],
            }
            for kind, counts in sizes.items():
                row[f"{steps} steps, {kind}"] = versus(found, mine, theirs, counts)
        table[f"compute={budget}"] = row
    return table


def versus(
    found: list[dict[str, Any]], mine: list[Any], theirs: list[Any], counts: list[int]
) -> dict[str, Any]:
    """The loop's best of `counts`, and the guided call's image minus it."""
    bests = [best(arm, count) for arm, count in zip(theirs, counts, strict=True)]
    gaps = {
        "oracle": [m["oracle"] - float(b[1]) for m, b in zip(mine, bests, strict=True)],
        "reward": [m["reward"] - b[0] for m, b in zip(mine, bests, strict=True)],
    }
    return {
        "images": round(float(np.mean(counts)), 2),
        "short of images": max(counts) > len(theirs[0]["rewards"]),
        "oracle": round(float(np.mean([b[1] for b in bests])), 4),
        "reward": round(float(np.mean([b[0] for b in bests])), 4),
        "oracle_gap": common.interval(by_caption(found, gaps["oracle"])),
        "reward_gap": common.interval(by_caption(found, gaps["reward"])),
    }


def by_caption(found: list[dict[str, Any]], values: list[Any]) -> list[float]:
    """Means over the seeds of every caption: what is resampled for an interval."""
    groups: dict[int, list[float]] = {}
    for line, value in zip(found, values, strict=True):
        groups.setdefault(line["caption"], []).append(float(value))
    return [float(np.mean(group)) for group in groups.values()]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=112)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="run nothing")
    args = common.parsed(parser)
    if not args.show:
        work(args)
    found = lines()
    content = {"study": "compute", **common.provenance(), "units": len(found), **summary(found)}
    common.write_json(common.RESULTS / "compute.json", content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
