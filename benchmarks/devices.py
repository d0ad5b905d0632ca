"""What do several devices gain? `guided(BestOfN(8), devices=...)` on one, two and four.

    OMP_NUM_THREADS=1 python benchmarks/devices.py --threads 1 --rounds 3

Devices are threads of the CPU here. `computing`: the bundled world's own denoiser, which gains
where that many cores idle. `waiting`: a denoiser that waits a fixed time for every row, as a
process waits for a GPU, and computes nothing: what is lost to handing rows out, and to all that one
device does alone (solver, decoding, scoring). Calls take turns; medians of seconds of a call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from diffusers import UNet2DConditionModel

import steer


STEPS, N = 10, 8


@contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """Every denoiser of the bundled world waits so long for a row, and answers at once."""
    forward = UNet2DConditionModel.forward

    def wait(self: Any, sample: Any, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        time.sleep(seconds * len(sample) / 2)  # with guidance a latent is two rows of the batch
        return (sample * 0.1,)

    UNet2DConditionModel.forward = wait
    try:
        yield
    finally:
        UNet2DConditionModel.forward = forward


def seconds(pipe: Any, devices: tuple[int, ...], width: int, rounds: int) -> dict[str, Any]:
    """Seconds of a call by number of devices, and whether all returned the same bits."""
    calls = {
        count: steer.guided(
            pipe, "shapes", method=steer.BestOfN(N), lane_width=width, devices=["cpu"] * count
        )
        for count in devices
    }
    spent: dict[int, list[float]] = {count: [] for count in devices}
    images = []
    for number in range(-1, rounds):
        for count, call in calls.items():
            start = time.perf_counter()
            out = call(
                "a red circle left of a blue square",
                num_inference_steps=STEPS,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            )
            images.append(out.images)
            if number >= 0:  # the first are for warming up
                spent[count].append(round(time.perf_counter() - start, 3))
    medians = {count: round(float(np.median(own)), 3) for count, own in spent.items()}
    same = all(torch.equal(images[0], other) for other in images)
    return {"lane_width": width, "seconds": spent, "medians": medians, "bit_identical": same}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wait", type=float, default=0.05, help="seconds a row, where it waits")
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    pipe = steer.shapes.pipeline()
    pipe.set_progress_bar_config(disable=True)
    arms = {
        "waiting": (waiting(args.wait), (1, 2, 4), 2),
        "computing": (nullcontext(), (1, 2), 4),
    }
    result: dict[str, Any] = {"study": "devices", **common.provenance(), "n": N, "steps": STEPS}
    for name, (around, devices, width) in arms.items():
        with around:
            result[name] = seconds(pipe, devices, width, args.rounds)
        print(name, result[name]["medians"], result[name]["bit_identical"])
    path = args.out or common.RESULTS / f"devices_{common.hardware()}.json"
    common.write_json(path, {**result, "wait_seconds": args.wait})


if __name__ == "__main__":
    main()
