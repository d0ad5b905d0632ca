"""What do cheaper previews cost and lose? The VAE, the tiny decoder and the linear map compared.

    python benchmarks/previews_decoders.py --captions 32 --particles 12

Of the bundled world, on training captions. *Agreement*: within each caption, particles are ranked
by the reward of the same x0 preview shown by each decoder (Spearman with the VAE's, and with the
final reward). *Equal compute*: Prune looks after every step; what cheaper previews save in FLOPs
goes into more starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

import steer
from steer.core.types import Population, Search
from steer.driver.decoding.decode import decode
from steer.driver.decoding.previews import PreviewDecoder, preview_decoder
from steer.search.context import Context
from steer.search.method import Method


NAMES = ("vae", "tiny", "linear")
GUIDANCE = 3.5
STEPS, LOOKS = 20, (1, 3, 4, 6, 9, 12, 15, 18)
"""Of the agreement: DDIM steps, and those whose previews are shown."""
SHORT, KEEP = 8, (6, 5, 4, 3, 2)
"""Of the equal compute: DDIM steps, and who survives the looks after steps 2 to 6."""


@dataclass(frozen=True)
class Watch(Method):
    """Sample `n` particles to the end, and score previews by every decoder on the way."""

    n: int
    decoders: dict[str, PreviewDecoder | None]
    seen: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def cost(self, steps: int) -> int:
        return self.n * steps

    def __call__(self, ctx: Context, start: Population) -> Search:
        solver, now = ctx.solver(), start
        for step in ctx.steps:
            output = yield from ctx.denoise(now, step)
            if step.index in LOOKS:
                x0 = step.x0(now.x, output)
                for name, decoder in self.decoders.items():
                    images = ctx.model.decode(x0, by=decoder)
                    self.seen[name, step.index] = ctx.score(images, now.ids).tolist()
            now = now.at(solver.step(step, now.x, output, now.ids))
        self.seen["final", -1] = ctx.evaluate(now).tolist()
        return ctx.winners(now)


def agreement(pipe: Any, prompts: list[str], particles: int) -> list[dict[str, Any]]:
    """Per step and decoder: Spearman within captions with the VAE's previews and with finals."""
    decoders = {name: preview_decoder(pipe, name) for name in NAMES}
    guided = steer.guided(pipe, reward="shapes", lane_width=min(6, particles))
    seen = []
    for i, prompt in enumerate(tqdm(prompts, desc="agreement")):
        method = Watch(particles, decoders)
        guided(
            prompt,
            method=method,
            generator=torch.Generator().manual_seed(i),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="latent",
        )
        seen.append(method.seen)
    rows = []
    for step in LOOKS:
        for name in NAMES:
            pairs = [(s[name, step], s["vae", step], s["final", -1]) for s in seen]
            rows.append(
                {
                    "step": step + 1,
                    "decoder": name,
                    "with_vae": common.interval(_spearman([(a, b) for a, b, _ in pairs])),
                    "with_final": common.interval(_spearman([(a, c) for a, _, c in pairs])),
                }
            )
    return rows


def _spearman(pairs: list[tuple[list[float], list[float]]]) -> np.ndarray:
    return np.nan_to_num([stats.spearmanr(a, b)[0] for a, b in pairs])


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and convolutions, as torch counts them."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def costs(pipe: Any) -> dict[str, int]:
    """FLOPs per image of each decoder, of the reward, and of a denoiser row with guidance."""
    z = torch.zeros(1, 4, 16, 16, device=pipe.device)
    text = torch.zeros(2, 20, pipe.text_encoder.config.hidden_size, device=pipe.device)
    reward = steer.reward("shapes")
    found = {}
    for name in NAMES:
        decoder = preview_decoder(pipe, name)
        decode(pipe, z, by=decoder)  # a linear map is fitted at its first use
        found[name] = flops(lambda by=decoder: decode(pipe, z, by=by))
    found["reward"] = flops(lambda: reward(torch.zeros(1, 3, 64, 64), ["a red circle"]))
    found["row"] = flops(lambda: pipe.unet(z.repeat(2, 1, 1, 1), 1, text))
    return found


def pruning(start: int) -> steer.Prune:
    """From `start` particles down to two, with a look after each of the steps 2 to 6 of 8."""
    return steer.Prune(start=start, keep=KEEP, at=tuple((k + 2) / SHORT for k in range(len(KEEP))))


def spent(name: str, start: int, cost: dict[str, int]) -> int:
    """FLOPs of a call of `pruning(start)` with previews by `name`; a linear map's fit aside."""
    sizes = (start, *KEEP)
    previews, finals = sum(sizes[:-1]), sizes[-1]
    rows = pruning(start).cost(SHORT)
    scored = (previews + finals) * cost["reward"]
    return rows * cost["row"] + previews * cost[name] + (finals + 1) * cost["vae"] + scored


def equal_compute(
    pipe: Any, prompts: list[str], base: int, cost: dict[str, int]
) -> list[dict[str, Any]]:
    """Prune with each decoder, with as many starts as the FLOPs of the VAE's arm pay for."""
    budget = spent("vae", base, cost)
    arms: dict[str, tuple[str, int]] = {"vae": ("vae", base), "tiny, same starts": ("tiny", base)}
    for name in NAMES[1:]:
        starts = max(s for s in range(base, 4 * base) if spent(name, s, cost) <= budget)
        arms[name] = (name, starts)
    values: dict[str, list[tuple[float, float, float]]] = {}
    rows = []
    for arm, (name, start) in arms.items():
        guided = steer.guided(pipe, reward="shapes", method=pruning(start), preview=name)
        values[arm] = []
        for i, prompt in enumerate(tqdm(prompts, desc=arm)):
            out = guided(
                prompt,
                generator=torch.Generator().manual_seed(1000 + i),
                num_inference_steps=SHORT,
                guidance_scale=GUIDANCE,
            )
            (verdict,) = steer.shapes.oracle(out.images, prompt)
            values[arm].append((out.rewards[0], float(verdict.all_met), verdict.fraction))
        table = np.array(values[arm])
        gap = table - np.array(values["vae"])
        rows.append(
            {
                "arm": arm,
                "starts": start,
                "gigaflops": round(spent(name, start, cost) / 1e9, 2),
                "reward": common.interval(table[:, 0]),
                "all_met": common.interval(table[:, 1]),
                "reward_minus_vae": common.interval(gap[:, 0]),
                "all_met_minus_vae": common.interval(gap[:, 1]),
                "values": np.round(table, 4).tolist(),
            }
        )
    return rows


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=32)
    parser.add_argument("--particles", type=int, default=12)
    parser.add_argument("--prune-captions", type=int, default=48)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--parts", default="agreement,equal")
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    pipe = steer.shapes.pipeline(device=args.device)
    pipe.set_progress_bar_config(disable=True)
    out = args.out or common.RESULTS / f"previews_decoders_{common.hardware()}.json"
    cost = costs(pipe)
    result = {
        "study": "previews_decoders",
        **common.provenance(),
        "split": "train",
        "flops": cost,
        "steps": STEPS,
        "captions": args.captions,
        "particles": args.particles,
    }
    if "agreement" in args.parts:
        prompts = steer.shapes.prompts("train", args.captions, seed=0)
        result["agreement"] = agreement(pipe, prompts, args.particles)
        common.write_json(out, result)
    if "equal" in args.parts:
        prompts = steer.shapes.prompts("train", args.prune_captions, seed=1)
        result["prune_captions"] = args.prune_captions
        result["equal_compute"] = equal_compute(pipe, prompts, args.starts, cost)
    common.write_json(out, result)


if __name__ == "__main__":
    main()
