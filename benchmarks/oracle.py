"""Is the oracle right? Ground-truth renders against true captions and captions false in one aspect.

python benchmarks/oracle.py --scenes 3000
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import common
import numpy as np
import torch
from torchvision.transforms.functional import gaussian_blur
from tqdm.auto import tqdm

from steer.shapes.drawing import place, render
from steer.shapes.oracle import oracle
from steer.shapes.scenes import Spec, perturb, sample_spec


CHUNK = 100


def aspect(spec: Spec, other: Spec) -> str:
    """In what two specs differ."""
    if spec.relation != other.relation:
        return "relation"
    if spec.background != other.background:
        return "background"
    pairs = list(zip(spec.groups, other.groups, strict=True))
    for name in ("count", "shape", "size", "color"):
        if any(getattr(a, name) != getattr(b, name) for a, b in pairs):
            return name
    return "order"


def main() -> None:
    parser = argparse.ArgumentParser(description=common.headline(__doc__))
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng, noise = np.random.default_rng(41), torch.Generator().manual_seed(41)
    right: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for _ in tqdm(range(0, args.scenes, CHUNK)):
        specs = [sample_spec(rng) for _ in range(CHUNK)]
        wrong = [perturb(spec, rng) for spec in specs]
        clean = render([place(spec, rng) for spec in specs])
        soft = gaussian_blur(clean, [5, 5], [0.6, 0.6])
        soft = (soft + 0.03 * torch.randn(soft.shape, generator=noise)).clamp(0, 1)
        right["clean"] += sum(v.all_met for v in oracle(clean, specs))
        right["blur 0.6, noise 0.03"] += sum(v.all_met for v in oracle(soft, specs))
        for spec, other, verdict in zip(specs, wrong, oracle(clean, wrong), strict=True):
            tried[aspect(spec, other)] += 1
            rejected[aspect(spec, other)] += not verdict.all_met
    content = {
        "study": "oracle",
        **common.provenance(),
        "scenes": args.scenes,
        "right": {name: count / args.scenes for name, count in right.items()},
        "false_captions": dict(tried),
        "rejected": {name: rejected[name] / count for name, count in tried.items()},
    }
    common.write_json(args.out or common.RESULTS / f"oracle_{common.hardware()}.json", content)


if __name__ == "__main__":
    main()
