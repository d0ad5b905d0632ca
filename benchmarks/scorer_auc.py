"""Can the rewards tell right from wrong? AUC within captions, on fresh held-out samples.

    python benchmarks/scorer_auc.py --captions 160 --images 8

For pairs of generated images of one caption, one correct by the oracle and one not: how often the
correct one scores higher. The captions' combinations were in no training set, and these samples
were in none either. With `--pool FOLDER` the samples are kept there, and drawn once only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

import steer


GUIDANCE = 3.5
BOTH = ("shapes", "shapes-vqa")
REWARDS = (
    *BOTH,
    "shapes-clip",
    f"rank({','.join(BOTH)})",
    f"standardise({','.join(BOTH)})",
    f"worst({','.join(BOTH)})",
)


def caption_auc(scores: np.ndarray, correct: np.ndarray) -> float | None:
    """AUC of one caption's images; `None` where they are all right or all wrong."""
    right, wrong = scores[correct], scores[~correct]
    if not len(right) or not len(wrong):
        return None
    gap = right[:, None] - wrong[None, :]
    return float((gap > 0).mean() + 0.5 * (gap == 0).mean())


class Samples:
    """The pipeline's samples of a caption, `(images, 3, 64, 64)` in [0, 1]."""

    def __init__(self, images: int, steps: int, seed: int, device: str, pool: Path | None) -> None:
        self.images, self.steps, self.seed, self.pool = images, steps, seed, pool
        self.pipe: Any = steer.shapes.pipeline(device=device)
        self.pipe.set_progress_bar_config(disable=True)

    def of(self, number: int, prompt: str) -> Tensor:
        """Those of the caption of this number; from the pool where it has them."""
        name = f"{self.seed}-{self.steps}-{self.images}-{number:04d}.safetensors"
        path = self.pool / name if self.pool else None
        if path and path.exists():
            return load_file(path)["images"].float() / 255
        noise = torch.Generator().manual_seed(1_000_000 + self.seed * 10_000 + number)
        drawn = self.pipe(
            [prompt] * self.images,
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            generator=noise,
            output_type="pt",
        ).images
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"images": (drawn.cpu() * 255).round().to(torch.uint8)}, path)
        return drawn


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=160)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--split", choices=("held_out", "train"), default="held_out")
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    samples = Samples(args.images, args.steps, args.seed, args.device, args.pool)
    rewards = {name: steer.reward(name, device=args.device) for name in REWARDS}
    rows = []
    for i, prompt in enumerate(tqdm(steer.shapes.prompts(args.split, args.captions, args.seed))):
        images = samples.of(i, prompt)
        texts = [prompt] * args.images
        correct = [v.all_met for v in steer.shapes.oracle(images, texts)]
        with torch.no_grad():
            scores = {name: r(images, texts).tolist() for name, r in rewards.items()}
        rows.append({"prompt": prompt, "correct": correct, "scores": scores})
    content: dict[str, Any] = {
        "study": "scorer_auc",
        **common.provenance(),
        "sampler": f"DDIM, {args.steps} steps, guidance {GUIDANCE}",
        "split": args.split,
        "captions": args.captions,
        "images": args.images,
        "all_met": common.interval([float(np.mean(row["correct"])) for row in rows]),
    }
    for name in REWARDS:
        aucs = [caption_auc(np.array(r["scores"][name]), np.array(r["correct"])) for r in rows]
        known = [auc for auc in aucs if auc is not None]
        content[f"auc {name}"] = {**common.interval(known), "captions": len(known)}
    path = args.out or common.RESULTS / f"scorer_auc_{common.hardware()}.json"
    common.write_json(path, {**content, "rows": rows})


if __name__ == "__main__":
    main()
