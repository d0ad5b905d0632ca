"""What is compute best spent on in the bundled world? Pilots of training captions, and their plans.

    python benchmarks/calibrate.py

`steer.calibrate` with the scorer as reward and the contrastive model, which nobody optimises, as
judge. The oracle is no reward; it does not choose.
"""

from __future__ import annotations

from pathlib import Path

import common

import steer


STEPS, GUIDANCE = 20, 3.5


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=32)
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--pilots", type=Path, help="a .jsonl file to keep pilots in")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    guided = steer.guided(
        steer.shapes.pipeline(device=args.device), reward="shapes", judge="shapes-clip"
    )
    plans = steer.calibrate(
        guided,
        steer.shapes.prompts("train", args.captions, seed=11),
        n=args.particles,
        out=args.pilots,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
    )
    print(plans)
    plans.save(args.out or common.RESULTS / f"plans_{common.hardware()}.json")
    if args.page:
        plans.page(args.page)


if __name__ == "__main__":
    main()
