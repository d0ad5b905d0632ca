"""What does steering cost before it does anything? `guided(BestOfN(1))` against the plain call.

    python benchmarks/overhead.py --calls 30

Both are called in turn in one run, first one then the other, so that drifts of the machine hit
both; the ratio is taken pair by pair. The guided call also scores its image, as every guided call
does; `search only` leaves out the time that the ledger books on the reward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import steer


STEPS = 20


def load(name: str, device: str) -> Any:
    """The bundled pipeline, or one from a folder or the hub."""
    if name == "shapes":
        return steer.shapes.pipeline(device=device)
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(name).to(device)


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    """A reward that costs nothing."""
    return images.mean((1, 2, 3))


def counted(pipe: Any) -> dict[str, int]:
    """Calls per model from here on, kept up to date by hooks."""
    calls: dict[str, int] = {}
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            calls[name] = 0

            def count(*_: Any, name: str = name) -> None:
                calls[name] += 1

            getattr(part, "decoder", part).register_forward_hook(count)  # the VAE has no forward
    return calls


def timed(call: Callable[..., Any], seed: int, device: str) -> tuple[float, Any]:
    """Seconds of one call, and what it returned."""
    generator = torch.Generator().manual_seed(seed)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    out = call(
        "a red circle left of a blue square",
        num_inference_steps=STEPS,
        generator=generator,
        output_type="pt",
    )
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start, out


def measure(pipe: Any, reward: Any, calls: int, device: str) -> dict[str, Any]:
    """Interleaved pairs, half of them the other way round."""
    guided = steer.guided(pipe, reward, method=steer.BestOfN(1))
    counts = counted(pipe)
    seconds: dict[str, list[float]] = {"plain": [], "guided": [], "search only": []}
    made: dict[str, dict[str, int]] = {}
    same = True
    for i in tqdm(range(-2, calls), desc="pairs"):
        images = {}
        arms: list[tuple[str, Any]] = [("plain", pipe), ("guided", guided)]
        for name, call in arms if i % 2 else reversed(arms):
            before = dict(counts)
            spent, out = timed(call, i + 2, device)
            made[name] = {part: counts[part] - before[part] for part in counts}
            images[name] = out.images
            if i < 0:  # warm-up
                continue
            seconds[name].append(spent)
            if name == "guided":
                seconds["search only"].append(spent - out.report.ledger.seconds["reward"])
        same &= torch.equal(images["plain"], images["guided"])
    plain = np.asarray(seconds["plain"])
    return {
        "plain_seconds": common.interval(plain),
        "guided_seconds": common.interval(seconds["guided"]),
        "ratio": common.interval(np.asarray(seconds["guided"]) / plain),
        "ratio_without_reward": common.interval(np.asarray(seconds["search only"]) / plain),
        "ratio_of_medians": round(float(np.median(seconds["guided"]) / np.median(plain)), 5),
        "ratio_of_fastest": round(min(seconds["guided"]) / min(seconds["plain"]), 5),
        "calls_per_image": made,
        "bit_identical": bool(same),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--pipeline", default="shapes", help="shapes, a folder, or a hub id")
    parser.add_argument("--reward", default="", help="a reward's name; one that is free by default")
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    pipe = load(args.pipeline, args.device)
    pipe.set_progress_bar_config(disable=True)
    result = {
        "study": "overhead",
        **common.provenance(),
        "pipeline": args.pipeline,
        "scheduler": type(pipe.scheduler).__name__,
        "steps": STEPS,
        "reward": args.reward or "free",
        "pairs": args.calls,
        **measure(pipe, args.reward or brightness, args.calls, args.device),
    }
    path = args.out or common.RESULTS / f"overhead_{common.hardware()}.json"
    common.write_json(path, result)


if __name__ == "__main__":
    main()
