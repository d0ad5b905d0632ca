"""Can the rewards tell right from wrong? AUC within captions, on fresh held-out samples.

    python benchmarks/scorer_auc.py --captions 160 --images 8

For pairs of generated images of one caption, one correct by the oracle and one not: how often the
correct one scores higher. The captions' combinations were in no training set, and these samples
were in none either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from tqdm.auto import tqdm

import steer


STEPS, GUIDANCE = 20, 3.5
REWARDS = ("shapes", "shapes-clip")


def caption_auc(scores: np.ndarray, correct: np.ndarray) -> float | None:
    """AUC of one caption's images; `None` where they are all right or all wrong."""
    right, wrong = scores[correct], scores[~correct]
    if not len(right) or not len(wrong):
        return None
    gap = right[:, None] - wrong[None, :]
    return float((gap > 0).mean() + 0.5 * (gap == 0).mean())


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=160)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    pipe: Any = steer.shapes.pipeline(device=args.device)
    pipe.set_progress_bar_config(disable=True)
    rewards = {name: steer.reward(name, device=args.device) for name in REWARDS}
    rows = []
    for i, prompt in enumerate(tqdm(steer.shapes.prompts("held_out", args.captions, args.seed))):
        out = pipe(
            [prompt] * args.images,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(1_000_000 + args.seed * 10_000 + i),
            output_type="pt",
        )
        texts = [prompt] * args.images
        correct = [v.all_met for v in steer.shapes.oracle(out.images, texts)]
        scores = {name: r(out.images, texts).tolist() for name, r in rewards.items()}
        rows.append({"prompt": prompt, "correct": correct, "scores": scores})
    content: dict[str, Any] = {
        "study": "scorer_auc",
        **common.provenance(),
        "sampler": f"DDIM, {STEPS} steps, guidance {GUIDANCE}",
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
