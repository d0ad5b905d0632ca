"""What tuning buys: every objective on the same samples and updates, with clean and flipped labels.

    steer tune data examples/tune_shapes_data.yaml       # 20,000 scored samples, once
    python benchmarks/tuned.py                           # label, train, draw, judge; goes on
    python benchmarks/tuned.py --show                    # table and plot

Settings are those of `examples/tuned/`, so `steer tune run examples/tuned/tgo.yaml` trains one
of them alone. Any number of processes may share the work. The adapters' weight is chosen by the
reward on training captions; then `results/tuned.jsonl` gets a line per image of held-out captions,
and `results/tuned.json` the table, with the ends of the training logs and the drift.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from label_noise import noisy_pairs, noisy_scores
from methods_show import read
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tuned_show import show

import steer
from steer.tune import TuneConfig, tune
from steer.tune.data.config import DataConfig
from steer.tune.data.make import make
from steer.tune.dataset import Dataset
from steer.tune.noising import Noising, nest, predict


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RUNS = Path("runs/tuned")
SAMPLES = Path("runs/tune/shapes-scored")
DRIFT_ROWS, DRIFT_BATCH = 256, 64
CAPTIONS, WEIGHTS = 64, (0.5, 1.0, 2.0)
HELD_OUT, SEEDS, BATCH = 160, 2, 32
RAW = common.RESULTS / "tuned.jsonl"
ADAPTERS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Training:
    """One checkpoint: settings of `examples/tuned/<objective>.yaml`, labels with noise.

    Attributes:
        objective: The file's name.
        noise: Share of pairs swapped, or of scores reflected about their median.
        long: Three times the updates, with the settings of `examples/tuned_long/`.
    """

    objective: str
    noise: float = 0.0
    long: bool = False

    @property
    def name(self) -> str:
        noise = f"-{round(100 * self.noise)}" if self.noise else ""
        return f"{self.objective}{'-long' if self.long else ''}{noise}"

    @property
    def out(self) -> Path:
        return RUNS / self.name

    def config(self) -> TuneConfig:
        """What `steer tune run` would be given."""
        folder = EXAMPLES / ("tuned_long" if self.long else "tuned")
        path = folder / f"{self.objective}.yaml"
        data = labelled_set(TuneConfig.load(path).objective.pairs, self.noise)
        return TuneConfig.load(path, data=str(data), out=str(self.out))


CLEAN = ("sft", "dpo", "poly-dpo", "kto", "tgo", "tgo-prompt")
NOISY = ("dpo", "poly-dpo", "tgo-prompt")
LONG = ("poly-dpo", "kto", "tgo-prompt")
ALL = [Training(name) for name in CLEAN]
ALL += [Training(name, noise) for noise in (0.2, 0.4) for name in NOISY]
ALL += [Training(name, long=True) for name in LONG]


def labelled_set(pairs: bool, noise: float) -> Path:
    """The samples with these labels; made where they are not there."""
    out = RUNS / f"data-{'pairs' if pairs else 'scores'}-{round(100 * noise)}"
    if not pairs:
        return noisy_scores(SAMPLES, out, noise) if noise else SAMPLES
    settings = DataConfig.load(EXAMPLES / "tune_shapes_pairs.yaml", out=str(RUNS / "data-pairs-0"))
    clean = make(settings, progress=False)
    return noisy_pairs(clean, out, noise) if noise else clean


@torch.no_grad()
def drift(folder: Path) -> float:
    """How far the predictions of the checkpoint in a folder are from the base's.

    Mean over held-out samples of the base, at uniformly drawn timesteps, of the squared difference
    per element (the target's variance is about 1): up to the timestep's weight the KL divergence of
    one denoising step, the variational bound's term. The same noise for every checkpoint.
    """
    data = Dataset.load(SAMPLES)
    rows = np.flatnonzero(data.split == "test")
    rows = rows[np.linspace(0, len(rows) - 1, DRIFT_ROWS).astype(int)]
    base, tuned = steer.shapes.pipeline(), steer.shapes.pipeline()
    tuned.load_lora_weights(str(folder))
    noising = Noising.of(base)
    generator = torch.Generator().manual_seed(0)
    found = []
    for part in np.split(rows, range(DRIFT_BATCH, len(rows), DRIFT_BATCH)):
        x0 = data.latents(part).float()
        noise = torch.randn(x0.shape, generator=generator)
        index = torch.randint(len(noising), (len(x0),), generator=generator)
        noisy, times = noising.add_noise(x0, noise, index), noising.timesteps[index]
        text = nest({k: v.float() for k, v in data.text(part).items()})
        own, other = (predict(pipe.unet, noisy, times, text) for pipe in (base, tuned))
        found.append((other - own).square().flatten(1).mean(1))
    return float(torch.cat(found).mean())


def drawing(folder: Path | None, weight: float = 1.0) -> Any:
    """A guided pipeline for plain calls, with the adapters of a folder in its weights."""
    pipe = steer.shapes.pipeline()
    if folder is not None:
        pipe.load_lora_weights(str(folder))
        pipe.fuse_lora(lora_scale=weight)
        pipe.unload_lora_weights()
    pipe.to(torch.bfloat16)
    return steer.guided(pipe, reward="shapes", method=steer.BestOfN(1), lane_width=1)


def draw(guided: Any, texts: list[str], seeds: list[int]) -> Any:
    """One plain call for these captions, each from its own seed."""
    return guided(
        texts,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=20,
        guidance_scale=3.5,
        output_type="pt",
    )


def reward_at(run: Training, weight: float) -> float:
    """Mean reward on training captions with the adapters at a weight."""
    guided = drawing(run.out / "tuned", weight)
    texts = steer.shapes.prompts("train", CAPTIONS, seed=7)
    found: list[float] = []
    for start in range(0, CAPTIONS, BATCH):
        part = range(start, min(start + BATCH, CAPTIONS))
        found += draw(guided, [texts[i] for i in part], [1000 + i for i in part]).rewards
    return float(np.mean(found))


def judge(name: str, folder: Path | None) -> None:
    """Draw held-out captions that are not on disk yet, and append a line per image."""
    there = {(r["name"], r["caption"]) for r in read(RAW)}
    texts = steer.shapes.prompts("held_out", HELD_OUT, seed=0)
    size = BATCH // SEEDS
    guided = None
    for first in range(0, HELD_OUT, size):
        captions = range(first, min(first + size, HELD_OUT))
        if (name, first) in there:
            continue
        guided = guided or drawing(folder)
        rows = [(i, seed) for i in captions for seed in range(SEEDS)]
        own = [texts[i] for i, _ in rows]
        out = draw(guided, own, [i + 100_003 * seed for i, seed in rows])
        images = out.images.float().cpu()
        verdicts = steer.shapes.oracle(images, own)
        groups = images.unflatten(0, (-1, SEEDS)).flatten(2)
        apart = torch.cdist(groups, groups).sum((1, 2)) / (SEEDS * (SEEDS - 1))
        apart = apart / groups.shape[-1] ** 0.5
        common.append_lines(
            RAW,
            [
                {
                    "name": name,
                    "caption": i,
                    "seed": seed,
                    "reward": round(out.rewards[k], 6),
                    "oracle": bool(verdicts[k].all_met),
                    "fraction": round(verdicts[k].fraction, 4),
                    "diversity": round(float(apart[k // SEEDS]), 5),
                }
                for k, (i, seed) in enumerate(rows)
            ],
        )


def choose(run: Training) -> None:
    """The adapters' best weight by the reward on training captions; `best/` has them at it."""
    rewards = {weight: reward_at(run, weight) for weight in WEIGHTS}
    weight = max(rewards, key=lambda w: rewards[w])
    (run.out / "best").mkdir(exist_ok=True)
    source = run.out / "tuned" / ADAPTERS
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    state = {k: weight * v if ".lora_B." in k else v for k, v in load_file(source).items()}
    save_file(state, run.out / "best" / ADAPTERS, metadata)
    known = {str(w): round(r, 5) for w, r in rewards.items()}
    choice = {"weight": weight, "rewards": known, "drift": drift(run.out / "best")}
    common.write_json(run.out / "best" / "choice.json", choice)


def is_finished(run: Training) -> bool:
    return (run.out / "best" / "choice.json").is_file()


def work(runs: list[Training]) -> None:
    """Train what is missing, choose its weight, measure its drift, draw and judge."""
    with common.claimed(RUNS / "base.lock") as mine:
        if mine:
            judge("base", None)
    for run in runs:
        with common.claimed(RUNS / f"{run.name}.lock") as mine:
            if mine and not is_finished(run):
                tune(run.config(), progress=True)
                choose(run)
            if mine:
                judge(run.name, run.out / "best")


def summary(run: Training) -> dict[str, Any]:
    """What a run was and came to; the log's figures are means over its last tenth."""
    log = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
    steps = [row for row in log if "loss" in row]
    last = steps[-max(1, len(steps) // 10) :]
    figures = {
        key: round(float(np.mean([row[key] for row in last])), 4)
        for key in ("loss", "accuracy", "margin")
        if key in last[0]
    }
    settings = run.config().to_dict()
    return {
        "name": run.name,
        "noise": run.noise,
        "settings": {k: v for k, v in settings.items() if k != "validation"},
        **figures,
        **json.loads((run.out / "best" / "choice.json").read_text()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=common.headline(__doc__))
    parser.add_argument("--only", default="", help="names of runs, split by commas")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own")
    parser.add_argument("--show", action="store_true", help="train nothing")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    names = set(filter(None, args.only.split(",")))
    if not args.show:
        work([run for run in ALL if not names or run.name in names])
        return
    runs = [summary(run) for run in ALL if is_finished(run)]
    table, text = show(read(RAW), runs, ROOT / "docs")
    common.write_json(common.RESULTS / "tuned.json", {**common.provenance(), "runs": table})
    print(text)


if __name__ == "__main__":
    main()
