"""Are calls batched? `compute=4` on one prompt against a plain batched loop, row for row.

    python benchmarks/lanes.py --rounds 24 --threads 1

The loop is what a user writes by hand: `num_images_per_prompt=4`, one reward call on the images,
the best of them. All arms are called in turn in one process, in an order that turns with the round;
per round the seconds of `compute=4` are divided by those of the loop, per denoiser row on either
side. Plain batches show what a row costs in batches of one to sixteen, from which the
default of eight rows a lane comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from tqdm.auto import tqdm

import steer


STEPS, IMAGES, SIZES = 20, 4, (1, 2, 4, 8, 16)
PROMPT = "a red circle left of a blue square"


def loop(pipe: Any, reward: Any, seed: int) -> int:
    """Best of four by hand; the denoiser rows that it cost."""
    images = plain(pipe, IMAGES, seed)
    reward(images, [PROMPT] * IMAGES).argmax()
    return IMAGES * STEPS


def plain(pipe: Any, images: int, seed: int) -> Any:
    """A plain call of several images, `(images, 3, H, W)`."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        PROMPT,
        num_inference_steps=STEPS,
        num_images_per_prompt=images,
        generator=generator,
        output_type="pt",
    ).images


def searched(guided: Any, seed: int) -> int:
    """`compute=4`; the denoiser rows that it cost."""
    generator = torch.Generator().manual_seed(seed)
    out = guided(PROMPT, num_inference_steps=STEPS, generator=generator, output_type="pt")
    return out.report.ledger.denoiser_rows


def batch(pipe: Any, images: int, seed: int) -> int:
    """A plain call of several images; the denoiser rows that it cost."""
    plain(pipe, images, seed)
    return images * STEPS


def measure(pipe: Any, rounds: int) -> dict[str, Any]:
    """Milliseconds per denoiser row of every arm, all of its call counted.

    By the wall clock, and of the process's own CPU time, which other processes disturb less.
    """
    reward = steer.reward("shapes")
    arms: dict[str, Callable[[int], int]] = {
        "loop": partial(loop, pipe, reward),
        "compute=4": partial(searched, steer.guided(pipe, reward, compute=4)),
        "compute=4, lane_width=1": partial(
            searched, steer.guided(pipe, reward, compute=4, lane_width=1)
        ),
        **{f"batch of {size}": partial(batch, pipe, size) for size in SIZES},
    }
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    spent: dict[str, dict[str, list[float]]] = {c: {name: [] for name in arms} for c in clocks}
    rows: dict[str, int] = {}
    for number in tqdm(range(-1, rounds), desc="rounds"):
        names = list(arms)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = {clock: read() for clock, read in clocks.items()}
            rows[name] = arms[name](number + 1)
            if number >= 0:  # the first round warms up
                for clock, read in clocks.items():
                    spent[clock][name].append(1000 * (read() - start[clock]) / rows[name])
    return {"rows": rows, **{clock: summary(values) for clock, values in spent.items()}}


def summary(spent: dict[str, list[float]]) -> dict[str, Any]:
    """Means, and ratios to the loop round by round."""
    per_row = {name: np.asarray(values) for name, values in spent.items()}
    ratios = {name: values / per_row["loop"] for name, values in per_row.items()}
    return {
        "milliseconds_per_row": {name: common.interval(v) for name, v in per_row.items()},
        "ratio_to_loop": {name: common.interval(v) for name, v in ratios.items()},
        "median_ratio_to_loop": {n: round(float(np.median(v)), 4) for n, v in ratios.items()},
        "raw": {name: [round(v, 4) for v in values] for name, values in spent.items()},
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    pipe = steer.shapes.pipeline(device=args.device)
    pipe.set_progress_bar_config(disable=True)
    result = {
        "study": "lanes",
        **common.provenance(),
        "steps": STEPS,
        "rounds": args.rounds,
        **measure(pipe, args.rounds),
    }
    common.write_json(args.out or common.RESULTS / f"lanes_{common.hardware()}.json", result)


if __name__ == "__main__":
    main()
