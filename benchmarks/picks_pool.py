"""Candidates of training captions, painted once and graded by the oracle, for `picks.py`.

    python benchmarks/picks_pool.py --captions 80 --candidates 48 --seed 5 --out build/picks

One file a caption, so that a run can be interrupted and continued.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from tqdm.auto import tqdm

import steer


STEPS, GUIDANCE = 8, 3.5


def record(prompts: list[str], candidates: int, seed: int, folder: Path, device: str) -> None:
    """Paint and grade what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe: Any = steer.shapes.pipeline(device=device)
    pipe.set_progress_bar_config(disable=True)
    for i, prompt in enumerate(tqdm(prompts)):
        path = folder / f"{seed}_{i:03d}.npz"
        if path.exists():
            continue
        out = pipe(
            [prompt] * candidates,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(2_000_000 + seed * 10_000 + i),
            output_type="np",
        )
        pixels = (out.images * 255).round().astype(np.uint8)
        verdicts = steer.shapes.oracle(as_images(pixels), [prompt] * candidates)
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                prompt=prompt,
                images=pixels,
                met=[v.all_met for v in verdicts],
                fraction=[v.fraction for v in verdicts],
            )
        partial.rename(path)


def as_images(pixels: np.ndarray) -> torch.Tensor:
    """`(B, H, W, 3)` bytes as `(B, 3, H, W)` floats in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def load(folder: Path, seed: int) -> Iterator[tuple[str, torch.Tensor, np.ndarray, np.ndarray]]:
    """Prompt, images, whether all is met, and the fraction that is, caption by caption."""
    for path in sorted(folder.glob(f"{seed}_*.npz")):
        with np.load(path) as found:
            images = as_images(found["images"])
            yield str(found["prompt"]), images, found["met"], found["fraction"]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=80)
    parser.add_argument("--candidates", type=int, default=48)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = common.parsed(parser)
    prompts = steer.shapes.prompts("train", args.captions, args.seed)
    record(prompts, args.candidates, args.seed, args.out, args.device)


if __name__ == "__main__":
    main()
