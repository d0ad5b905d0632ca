"""What does a CLIP score cost, and its gradient? The kernels, the full scorer, and what it decides.

    python -m benchmarks.kernels                                  # everything, ViT-H/14 in bfloat16
    python -m benchmarks.kernels --batches 64 --sides 512 --arms eager compiled fused fp8
    python -m benchmarks.kernels --parts ops                      # more rows for the same table

In this order: a gate, which holds scores and image gradients of every arm against float32 (float64
on a CPU) and stops the command if one is off; the rate of a matrix product and of a copy, measured
in the same run; `scorers`, images on the device to scores there (`arms.py`); `ops`, each kernel
against what it replaces (`op_cases.py`); `published`, the path of the `hpsv2` package; `noise`, a
noise optimisation of 50 steps through a one-step generator; `quality`, whether fast scores rank and
choose as float32 ones do, on the timed weights and on the bundled trained scorer.

All arms run in turn, round by round in rotated order, each sample at least 20 ms of calls: medians
with the 20th and 80th percentiles. Rows go to a CSV as they are measured, replacing those of the
same setting on the same GPU, so that a run may be cut into parts; the rest to a JSON beside it, and
three plots. `speedup` is against eager PyTorch. `ceiling_share` counts the operations of the whole
network, and twice that with a gradient to the image.

Without a GPU the same code runs in minutes with a tiny model on the ops' PyTorch references: that
shows that the command works, and says nothing about any GPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.kernels import arms as arms_, models, noise, ops, published, quality
from benchmarks.kernels.arms import Arm, Score, Setting
from benchmarks.kernels.check import gate, wide
from benchmarks.kernels.clock import Clock
from benchmarks.kernels.op_cases import Sizes
from benchmarks.kernels.report import Report
from benchmarks.kernels.throughput import scorers
from steer.rewards.clip.tower_weights import vit_weights


PARTS = ("scorers", "ops", "published", "noise", "quality")


def settings(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is not given depends on whether there is a GPU."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=common.headline(__doc__))
    parser.add_argument("--model", default="ViT-H-14" if cuda else "tiny")
    parser.add_argument("--checkpoint", type=Path, help="its weights; default random ones")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--arms", nargs="+", default=arms_.NAMES, choices=arms_.NAMES)
    batches = (1, 4, 16, 64, 256) if cuda else (1, 4, 16)
    parser.add_argument("--batches", type=int, nargs="+", default=batches)
    parser.add_argument("--sides", type=int, nargs="+", default=(512, 1024) if cuda else (64, 96))
    parser.add_argument("--rounds", type=int, default=30 if cuda else 5)
    parser.add_argument("--steps", type=int, default=50 if cuda else 3, help="of the noise")
    parser.add_argument("--tiny", action="store_true", default=not cuda, help="a tiny generator")
    parser.add_argument("--compile-noise", action="store_true", help="takes many minutes")
    parser.add_argument("--prompts", type=int, default=64 if cuda else 24, help="of the quality")
    parser.add_argument("--out", type=Path, help="folder; default benchmarks/results")
    return parser.parse_args(arguments)


def checked_arms(
    wanted: list[str], setting: Setting, side: int, width: int, report: Report
) -> tuple[list[Arm], Score]:
    """The arms that run and are right, and exact scores; what is absent goes into the report."""
    made, absent = arms_.make(wanted, setting)
    work = wide(setting.device)
    exact = arms_.by_open_clip(setting.build(torch.float32).to(work), work)
    images = models.pictures(4, side, setting.device, setting.dtype)
    found, dropped = gate(made, exact, images, width)
    absent |= dropped
    for name, reason in absent.items():
        print(f"absent: {name}: {reason}", file=sys.stderr, flush=True)
    report.note(gate=found, absent=absent | published.absent())
    return [arm for arm in made if arm.name in found], exact


def main(arguments: list[str] | None = None) -> None:
    given = settings(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # of float32, which is what is exact
    setting = Setting(given.model, device, getattr(torch, given.dtype), given.checkpoint)
    report = Report(given.out or common.RESULTS, setting, common.headline(__doc__))
    model = setting.build()
    weights, width = vit_weights(model), model.visual.output_dim
    made, exact = checked_arms(list(given.arms), setting, given.sides[0], width, report)
    cuda = device.type == "cuda"
    clock = Clock(device, 0.02 if cuda else 0.005, given.rounds)
    report.flop = models.flops(weights)
    report.product_rate = clock.product_rate(setting.dtype, 8192 if cuda else 512)
    report.copy_rate = clock.copy_rate(2**30 if cuda else 2**26)
    report.note(
        gflop_per_image=report.flop / 1e9,
        product_tflops=report.product_rate,
        copy_gb_per_s=report.copy_rate,
    )
    if "scorers" in given.parts:
        scorers(made, clock, given.sides, given.batches, width, setting.dtype, report.put)
    if "ops" in given.parts:
        compile_too = any(arm.name == "compiled" for arm in made)
        for batch in given.batches:
            sizes = Sizes(weights, models.preprocess_of(model), batch, tuple(given.sides))
            ops.measure(sizes, clock, compile_too, report.put)
    _users(given, setting, report)
    if "quality" in given.parts:
        report.note(quality=_quality(given, made, exact, setting, width))
    for path in report.finish(given.sides[0]):
        print(path, file=sys.stderr)


def _users(given: argparse.Namespace, setting: Setting, report: Report) -> None:
    """The parts that take seconds per call: a few samples of each."""
    clock = Clock(setting.device, 0.0, min(given.rounds, 5))
    if "published" in given.parts:
        few = [batch for batch in given.batches if batch <= 16] or [min(given.batches)]
        report.put(published.measure(setting, clock, few, given.sides[0]))
    if "noise" in given.parts:
        found = noise.optimisation(setting, clock, given.steps, given.tiny, given.compile_noise)
        report.note(noise_optimisation=found)
        for row in found["rows"]:
            print(f"noise: {row}", file=sys.stderr, flush=True)


def _quality(
    given: argparse.Namespace, made: list[Arm], exact: Score, setting: Setting, width: int
) -> dict[str, Any]:
    count = max((n for n in given.batches if 1 < n <= 64), default=16)
    images = models.pictures(count, given.sides[0], setting.device, setting.dtype)
    return {
        "candidates": count,
        "timed weights": quality.of_arms(made, exact, images, given.prompts, width),
        "bundled scorer, trained": quality.of_a_trained_model(
            setting.device, 4 * given.prompts, 16
        ),
    }


if __name__ == "__main__":
    main()
