"""How much of a preference gradient is signal? By timestep, for pairs, siblings and single images.

    python benchmarks/tuned_signal.py

At the base, where every objective's gradient has the same direction: the mean of
`sign(label) grad MSE` over images. Of `--batches` batches of 32 images, the squared norm of the
mean gradient less its own noise is the signal; the trace of the batches' covariance is the noise.
Their ratio says how many batches it takes until the direction is known: 1 / ratio. Kinds differ in
what an image is compared with at the same noise and timestep: the other image of its pair, three
others of its caption (`siblings`), or nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor

import steer
from steer.tune.dataset import Dataset
from steer.tune.goals import TGO
from steer.tune.labels import make_labels
from steer.tune.noising import Noising, nest, predict
from steer.tune.objectives import squared_error


IMAGES = 32
BUCKETS = ((0, 200), (200, 400), (400, 600), (600, 800), (800, 1000))
KINDS = ("pairs", "siblings", "single images")


@dataclass(frozen=True)
class Samples:
    """Samples, their pairs, and labels by a threshold per caption."""

    scored: Dataset
    paired: Dataset
    labels: Tensor

    def draw(self, kind: str, rng: np.random.Generator) -> tuple[Dataset, np.ndarray, Tensor, int]:
        """The dataset, rows, signs (+1 good, -1 bad) and how many rows share their noise."""
        if kind == "pairs":
            pairs = self.paired.pairs
            assert pairs is not None
            chosen = rng.choice(np.flatnonzero(pairs.split == "train"), IMAGES // 2, replace=False)
            rows = np.stack([pairs.winner[chosen], pairs.loser[chosen]], 1).reshape(-1)
            return self.paired, rows, torch.tensor([1.0, -1.0]).repeat(IMAGES // 2), 2
        train = np.flatnonzero(self.scored.split == "train")
        if kind == "siblings":
            ids = self.scored.prompt_ids
            captions = rng.choice(np.unique(ids[train]), IMAGES // 4, replace=False)
            rows = np.concatenate(
                [rng.choice(np.flatnonzero(ids == c), 4, replace=False) for c in captions]
            )
            return self.scored, rows, 2 * self.labels[torch.from_numpy(rows)] - 1, 4
        rows = rng.choice(train, IMAGES, replace=False)
        return self.scored, rows, 2 * self.labels[torch.from_numpy(rows)] - 1, 1


def gradient(
    unet: Any, noising: Noising, batch: tuple[Dataset, np.ndarray, Tensor, int], index: Tensor
) -> Tensor:
    """The gradient of mean(sign x MSE) with respect to all weights, (P,)."""
    data, rows, signs, shared = batch
    x0 = data.latents(rows).float()
    generator = torch.Generator().manual_seed(int(index.sum()))
    noise = torch.randn(len(rows) // shared, *x0.shape[1:], generator=generator)
    noise, index = (x.repeat_interleave(shared, 0) for x in (noise, index))
    text = nest({k: v.float() for k, v in data.text(rows).items()})
    with torch.autocast("cpu", torch.bfloat16):
        noisy = noising.add_noise(x0, noise, index)
        predicted = predict(unet, noisy, noising.timesteps[index], text)
    error = squared_error(predicted, noising.target(x0, noise, index))
    found = torch.autograd.grad((signs * error).mean(), list(unet.parameters()))
    return torch.cat([part.flatten() for part in found])


def measure(samples: Samples, kind: str, bucket: tuple[int, int], batches: int) -> dict[str, Any]:
    """Signal, noise and their ratio for one kind of batch in one range of timesteps."""
    pipe = steer.shapes.pipeline()
    noising, unet = Noising.of(pipe), pipe.unet.requires_grad_(True)
    rng = np.random.default_rng(0)
    mean, squares = torch.zeros(()), 0.0
    for number in range(batches):
        batch = samples.draw(kind, rng)
        generator = torch.Generator().manual_seed(1000 * number + bucket[0])
        index = torch.randint(*bucket, (IMAGES // batch[3],), generator=generator)
        own = gradient(unet, noising, batch, index).double()
        mean = mean + own / batches
        squares += float(own.square().sum())
    noise = (squares - batches * float(mean.square().sum())) / (batches - 1)
    signal = float(mean.square().sum()) - noise / batches
    return {
        "kind": kind,
        "timesteps": bucket,
        "signal": signal,
        "noise": noise,
        "ratio": round(signal / noise, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=common.headline(__doc__))
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--scored", default="runs/tune/shapes-scored")
    parser.add_argument("--paired", default="runs/tuned/data-pairs-0")
    args = parser.parse_args()
    scored = Dataset.load(args.scored)
    samples = Samples(
        scored, Dataset.load(args.paired), make_labels(TGO(per_prompt=True), scored).labels
    )
    rows = []
    for kind in KINDS:
        for bucket in BUCKETS:
            rows.append(measure(samples, kind, bucket, args.batches))
            print(rows[-1], flush=True)
    path = Path(common.RESULTS) / f"tuned_signal_{common.hardware()}.json"
    common.write_json(path, {**common.provenance(), "batches": args.batches, "rows": rows})


if __name__ == "__main__":
    main()
