"""What is compute best spent on in the bundled world? Pilots of training captions, and their plans.

    python benchmarks/calibrate.py
    python benchmarks/calibrate.py --captions 16 --particles 8 --judge shapes-vqa --more

`steer.calibrate` with the scorer as reward and the contrastive model, which nobody optimises, as
judge. With `--more` plans may also guide, and take cheaper decoders of previews; `plans_more` is
then the result's name. The oracle is no reward; it does not choose.
"""

from __future__ import annotations

from pathlib import Path

import common

import steer


STEPS, GUIDANCE = 20, 3.5
WINDOWS = ((0.5, 0.95), (0.7, 0.95))
"""Those of the study of windows and strengths: `Guide`'s own, and from the last cut on."""


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=32)
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--pilots", type=Path, help="a .jsonl file to keep pilots in")
    parser.add_argument("--judge", default="shapes-clip")
    parser.add_argument("--more", action="store_true", help="look at guidance and decoders, too")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    guided = steer.guided(
        steer.shapes.pipeline(device=args.device), reward="shapes", judge=args.judge
    )
    plans = steer.calibrate(
        guided,
        steer.shapes.prompts("train", args.captions, seed=11),
        n=args.particles,
        out=args.pilots,
        windows=WINDOWS if args.more else (),
        previews=("tiny",) if args.more else (),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
    )
    print(plans)
    name = "plans_more" if args.more else "plans"
    plans.save(args.out or common.RESULTS / f"{name}_{common.hardware()}.json")
    if args.page:
        plans.page(args.page)


if __name__ == "__main__":
    main()
