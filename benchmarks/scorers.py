"""What does a CLIP score cost, and its gradient? Images on a GPU to scores on it, batch 1 to 64.

    python benchmarks/scorers.py
    python benchmarks/scorers.py --model ViT-L-14 --batches 1 64 --arms eager fused

Arms (`scorer_baselines.py`): open_clip eager, `torch.compile(max-autotune)`, the fused tower with
and without CUDA graphs, and with FP8; all on the same random weights and cached texts. First every
arm's scores and gradients are held against float32 (float64 on a CPU); if one is off, no number is
printed. Then all arms run in turn, round by round in rotated order, each sample at least 20 ms of
calls: medians and the 20th and 80th percentiles. `speedup` is against the first arm. `mfu` is the
share of the largest matrix product's rate, measured in the same run; the operations are those of
the whole network, and twice that with a gradient to the image.

Without a GPU the same code runs with a tiny model on the ops' PyTorch references: that shows that
the command works, and says nothing about any GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import common
import scorer_baselines as base
import torch
import torch.nn.functional as F
from torch import Tensor

from steer.rewards.vit_weights import vit_weights


BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 64)
CPU_NOTE = (
    "reference ops on a CPU with a tiny random model: shows that the command runs end to end, and "
    "is no claim about GPUs"
)
LIMITS = {"fp8": 0.15, "bfloat16": 0.03, "float16": 0.01, "float32": 1e-4}
"""Largest relative error of an arm's scores, |scores - exact| / |exact| over images and texts, by
type; half-precision open_clip may do worse, which then is the measure (`gate`)."""
GRADIENT = 0.98
"""Smallest cosine of an arm's image gradient and the exact one."""


def pictures(count: int, side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Smooth images with fine grain, in [0, 1]: noise alone would shift clocks and FP8 errors."""
    generator = torch.Generator().manual_seed(side)
    coarse = torch.rand(count, 3, 9, 9, generator=generator)
    grain = torch.randn(count, 3, side, side, generator=generator)
    images = F.interpolate(coarse, (side, side), mode="bicubic") + 0.05 * grain
    return images.clamp(0, 1).to(device, dtype)


def texts_of(count: int, width: int, device: torch.device) -> Tensor:
    """Unit vectors `(count, width)`, float32."""
    generator = torch.Generator().manual_seed(count)
    return F.normalize(torch.randn(count, width, generator=generator), dim=-1).to(device)


def gradient(score: base.Score, images: Tensor, texts: Tensor) -> Tensor:
    """The gradient of the summed scores with respect to the images."""
    leaf = images.detach().requires_grad_()
    (found,) = torch.autograd.grad(score(leaf, texts).sum(), leaf)
    return found


def errors(arm: base.Arm, exact: base.Score, images: Tensor, width: int) -> dict[str, float]:
    """Relative error of the scores against 8 texts, and the cosine of the gradients."""
    wide = torch.float64 if images.device.type == "cpu" else torch.float32
    got, expected = [], []
    for text in texts_of(8, width, images.device):
        rows = text.expand(len(images), -1)
        with torch.no_grad():
            got.append(arm.score(images, rows).clone().to(wide))
            expected.append(exact(images.to(wide), rows.to(wide)))
    a, b = torch.cat(got), torch.cat(expected)
    found = {"score_error": float((a - b).norm() / b.norm())}
    if arm.differentiable:
        rows = texts_of(len(images), width, images.device)
        one = gradient(arm.score, images, rows).to(wide).flatten()
        other = gradient(exact, images.to(wide), rows.to(wide)).flatten()
        found["gradient_cosine"] = float(F.cosine_similarity(one, other, dim=0))
    return found


def gate(
    arms: list[base.Arm], exact: base.Score, images: Tensor, width: int, dtype: str
) -> dict[str, dict[str, float]]:
    """Every arm's errors; allowed is at least one and a half times those of eager open_clip.

    Raises:
        SystemExit: One of them is too large, or not a number.
    """
    found = {arm.name: errors(arm, exact, images, width) for arm in arms}
    own = found.get("eager", {"score_error": 0.0, "gradient_cosine": 1.0})
    least = min(GRADIENT, 1 - 1.5 * (1 - own["gradient_cosine"]))
    for name, error in found.items():
        most = max(LIMITS["fp8" if name == "fp8" else dtype], 1.5 * own["score_error"])
        near = error["score_error"] <= most
        if not near or not error.get("gradient_cosine", 1.0) >= least:
            raise SystemExit(
                f"{name} is off: {error}; allowed are score_error up to {most:.3g} and "
                f"gradient_cosine from {least:.3g}: no time is reported"
            )
    return found


class Clock:
    """Seconds per call, by CUDA events or the wall clock.

    Args:
        device: Where calls run.
        least: Shortest sample in seconds; short calls are repeated in it.
    """

    def __init__(self, device: torch.device, least: float) -> None:
        self.cuda, self.least = device.type == "cuda", least

    def once(self, call: Callable[[], Any], repeats: int) -> float:
        """Seconds per call over `repeats` of them."""
        if self.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(repeats):
                call()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1e3 / repeats
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - begin) / repeats

    def compare(
        self, calls: Mapping[str, Callable[[], Any]], rounds: int
    ) -> dict[str, dict[str, Any]]:
        """Every call in every round, in rotated order: p20, p50, p80 in ms, and peak memory."""
        names = list(calls)
        repeats, first, peak = {}, {}, {}
        for name in names:
            first[name] = self.once(calls[name], 1)  # compiles, records
            self.once(calls[name], 3)
            if self.cuda:
                torch.cuda.reset_peak_memory_stats()
            repeats[name] = max(1, round(self.least / max(self.once(calls[name], 1), 1e-9)))
            peak[name] = torch.cuda.max_memory_allocated() / 2**30 if self.cuda else None
        samples: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds):
            cut = turn % len(names)
            for name in names[cut:] + names[:cut]:
                samples[name].append(1e3 * self.once(calls[name], repeats[name]))
        return {
            name: {
                **percentiles(samples[name]),
                "first_call_s": round(first[name], 2),
                "peak_gib": None if peak[name] is None else round(peak[name], 3),
            }
            for name in names
        }


def percentiles(samples: list[float]) -> dict[str, float]:
    """`p20`, `p50` and `p80` in ms."""
    if len(samples) < 2:
        return dict.fromkeys(("p20", "p50", "p80"), round(samples[0], 4))
    tenths = statistics.quantiles(samples, n=10, method="inclusive")
    return {key: round(tenths[i], 4) for key, i in (("p20", 1), ("p50", 4), ("p80", 7))}


def ceiling(device: torch.device, dtype: torch.dtype, side: int, clock: Clock) -> float:
    """Measured TFLOP/s of a square matrix product."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = clock.compare({"product": lambda: a @ b}, 5)["product"]["p20"]
    return 2 * side**3 / best / 1e9


def scorers(
    arms: list[base.Arm], images: Tensor, width: int, setting: argparse.Namespace, clock: Clock
) -> list[dict[str, Any]]:
    """Forward, and forward with backward, at every batch size."""
    rows = []
    for batch in setting.batches:
        some, texts = images[:batch].contiguous(), texts_of(batch, width, images.device)

        def forward(arm: base.Arm, x: Tensor = some, t: Tensor = texts) -> Tensor:
            with torch.no_grad():
                return arm.score(x, t)

        def backward(arm: base.Arm, x: Tensor = some, t: Tensor = texts) -> Tensor:
            return gradient(arm.score, x, t)

        for mode, run in (("forward", forward), ("forward+backward", backward)):
            able = [arm for arm in arms if arm.differentiable or mode == "forward"]
            calls = {arm.name: (lambda arm=arm, run=run: run(arm)) for arm in able}
            found = clock.compare(calls, setting.rounds)
            work = setting.flops * batch * (1 if mode == "forward" else 2)
            for name, time_ in found.items():
                rate = work / time_["p50"] / 1e9
                rows.append(
                    {"arm": name, "mode": mode, "batch": batch, **time_}
                    | {"images_per_s": round(1e3 * batch / time_["p50"], 2)}
                    | {"mfu": round(rate / setting.ceiling, 4)}
                    | {"speedup": round(found[able[0].name]["p50"] / time_["p50"], 3)}
                )
                print(_line(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    name = " ".join(str(row[key]) for key in ("mode", "side", "batch", "arm") if key in row)
    rest = [f"{row['p50']:.3f} ms", f"{row['speedup']:.2f}x"]
    rest += [f"{row['images_per_s']:.0f} images/s, mfu {row['mfu']:.1%}"] if "mfu" in row else []
    return f"{name}: {', '.join(rest)}"


def resizes(
    sides: list[int], patch: int, preprocess: Any, dtype: torch.dtype, device: torch.device,
    setting: argparse.Namespace, clock: Clock,
) -> list[dict[str, Any]]:  # fmt: skip
    """`resize_patchify` against the chain of PyTorch ops, eager and compiled, with its backward.

    Raises:
        SystemExit: It does not make the same patches.
    """
    chain, op = (f(preprocess, patch, dtype) for f in (base.patch_chain, base.patch_op))
    ways = {"chain": chain, "resize_patchify": op}
    if "compiled" in setting.arms:
        ways = {"compiled chain": base.compiled(chain), **ways}
    rows = []
    for side in sides:
        for batch in sorted({min(setting.batches), max(setting.batches)}):
            images = pictures(batch, side, device, dtype)
            gap = float((chain(images) - op(images)).abs().max())
            if not gap <= {torch.float32: 1e-4}.get(dtype, 0.04):
                raise SystemExit(f"resize_patchify is off by {gap} at {side}: no time is reported")
            upstream = torch.randn_like(chain(images))
            leaf = images.clone().requires_grad_()

            def forward(way: Any, x: Tensor = images) -> Any:
                with torch.no_grad():
                    return way(x)

            def backward(way: Any, x: Tensor = leaf, up: Tensor = upstream) -> Any:
                return torch.autograd.grad(way(x), x, up)

            for mode, run in (("forward", forward), ("forward+backward", backward)):
                calls = {k: (lambda way=way, run=run: run(way)) for k, way in ways.items()}
                found = clock.compare(calls, setting.rounds)
                slow = found[next(iter(ways))]["p50"]
                for name, time_ in found.items():
                    row = {"arm": name, "mode": f"resize {mode}", "side": side, "batch": batch}
                    rows.append(row | time_ | {"speedup": round(slow / time_["p50"], 3)})
                    print(_line(rows[-1]), file=sys.stderr, flush=True)
    return rows


def noise(
    model: Any, dtype: torch.dtype, device: torch.device, setting: argparse.Namespace, clock: Clock
) -> list[dict[str, Any]]:
    """Seconds of a noise optimisation of one image, and the reward before and after it."""
    generator = base.Generator(device, dtype, tiny=setting.tiny)
    texts = texts_of(1, model.visual.output_dim, device)
    plain, fused = base.by_open_clip(model, dtype), base.plain_tower(model)
    start = torch.randn(generator.shape, generator=torch.Generator().manual_seed(0)).to(device)
    rate = torch.tensor(0.05, device=device)
    ours = "fused, one graph" if device.type == "cuda" else "fused"
    rows = []
    for name, score, graphed in (("eager", plain, False), (ours, fused, True)):
        step = base.ascent(generator, score, texts, graphed)

        def run(step: Any = step) -> Tensor:
            x = start
            for _ in range(setting.steps):
                x = step(x, rate)
            return x

        found = clock.compare({name: run}, max(1, min(setting.rounds, 5)))[name]
        with torch.no_grad():
            before, after = (float(plain(generator(x), texts)) for x in (start, run()))
        rows.append(
            {"arm": name, "steps": setting.steps, "seconds": round(found["p50"] / 1e3, 3)}
            | {"reward_before": round(before, 5), "reward_after": round(after, 5)} | found
        )  # fmt: skip
        print(f"noise, {name}: {rows[-1]['seconds']} s", file=sys.stderr, flush=True)
    return rows


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    if device.type != "cuda":
        return {"device": "cpu", "note": CPU_NOTE}
    import triton

    about = torch.cuda.get_device_properties(device)
    return {
        "device": about.name,
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "memory_gib": round(about.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__,
    }


def settings(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is not given depends on whether there is a GPU."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=common.headline(__doc__))
    parser.add_argument("--model", default="ViT-H-14" if cuda else "tiny")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--side", type=int, default=512 if cuda else 64, help="of the images")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES if cuda else (1, 4))
    able = [name for name in base.ARMS if cuda or name != "compiled"]
    parser.add_argument("--arms", nargs="+", default=able, choices=base.ARMS)
    parser.add_argument("--rounds", type=int, default=30 if cuda else 5)
    parser.add_argument("--steps", type=int, default=50 if cuda else 3, help="of the noise")
    parser.add_argument("--tiny", action="store_true", default=not cuda, help="a tiny generator")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    setting = settings(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, setting.dtype)
    clock = Clock(device, 0.02 if device.type == "cuda" else 0.005)
    wide = torch.float32 if device.type == "cuda" else torch.float64
    model = base.random_model(setting.model, device, dtype)
    weights = vit_weights(model)
    width = weights.projection.shape[1]
    images = pictures(max(*setting.batches, 4), setting.side, device, dtype)
    arms = list(base.arms(setting.arms, model, dtype))
    exact = base.random_model(setting.model, device, dtype).to(wide)
    checked = gate(arms, base.by_open_clip(exact, wide), images[:4], width, setting.dtype)
    del exact
    setting.flops = base.flops(weights)
    setting.ceiling = ceiling(device, dtype, 8192 if device.type == "cuda" else 512, clock)
    sides = [512, 1024] if device.type == "cuda" else [setting.side]
    result = {
        "study": common.headline(__doc__),
        **machine(device),
        **common.provenance(),
        "model": setting.model,
        "dtype": setting.dtype,
        "image_side": setting.side,
        "gflop_per_image": round(setting.flops / 1e9, 3),
        "matmul_ceiling_tflops": round(setting.ceiling, 3),
        "gate": checked,
        "scorers": scorers(arms, images, width, setting, clock),
        "resize": resizes(sides, weights.patch, base.preprocess_of(model), dtype, device, setting,
                          clock),
        "noise_optimisation": noise(model, dtype, device, setting, clock),
    }  # fmt: skip
    common.write_json(setting.out or common.RESULTS / f"scorers_{common.hardware()}.json", result)
    return result


if __name__ == "__main__":
    main()
