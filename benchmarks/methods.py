"""Every method against best-of-N at equal compute: held-out captions, held-out judge.

    python benchmarks/methods.py                     # run what is missing, then tables and plots
    python benchmarks/methods.py --show              # only tables and plots of what there is

One line per image goes to `results/methods.jsonl`; a unit of work is one method at one budget on 16
captions, written whole or not at all, so the study goes on where it was stopped, and any number of
processes may share it. Every arm runs the same captions from the same generators. Best-of-N is read
off one pool of particles, of which it takes the first N. The denoiser computes in bfloat16 wherever
nothing is differentiated, for all arms alike.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
import torch._inductor.config as inductor
from methods_arms import BUDGETS, Pool, arms, slices
from methods_settings import recorded
from methods_show import show
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

import steer
from steer.search.method import Method


STEPS, GUIDANCE, BATCH = 20, 3.5, 16
RAW = common.RESULTS / "methods.jsonl"
IMAGES = Path("runs/methods")
DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Unit:
    """One method at one budget on one batch of captions.

    Attributes:
        name, compute: The arm; `compute` counts plain calls.
        method: What runs.
        batch, seed: Which captions, from which generators.
        alone: One caption a call: for searches that branch at different depths per prompt.
    """

    name: str
    compute: float
    method: Method
    batch: int
    seed: int
    alone: bool = False

    @property
    def key(self) -> tuple[str, float, str, int, int]:
        """What makes it the same work again."""
        return self.name, self.compute, recorded(self.method), self.batch, self.seed


def plan(captions: int, seeds: int, pool: int, budgets: list[int]) -> list[Unit]:
    """All units, those first without which the rest says little."""
    places = [(b, s) for s in range(seeds) for b in range(captions // BATCH)]
    passes: list[tuple[str, float, Method, bool]] = []
    parts = [("pool", float(part.n), part, False) for part in slices(pool)]
    passes += parts[:1]
    for budget in budgets:
        for name, method, alone in arms(budget, STEPS):
            passes.append((name, float(budget), method, alone))
    passes += parts[1:]
    return [Unit(n, c, m, b, s, alone) for n, c, m, alone in passes for b, s in places]


def halved(pipe: Any, compiled: bool = False) -> None:
    """Let a bfloat16 copy of the denoiser answer where nothing is differentiated."""
    exact = pipe.unet.forward
    rough = copy.deepcopy(pipe.unet).to(torch.bfloat16)
    if pipe.device.type == "cpu":
        rough = rough.to(memory_format=torch.channels_last)
    if compiled:
        inductor.freezing = True
        rough = torch.compile(rough, dynamic=True)

    def forward(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **more: Any) -> Any:
        if sample.requires_grad:
            return exact(sample, timestep, encoder_hidden_states, **more)
        more["return_dict"] = False
        half = (sample.bfloat16(), timestep, encoder_hidden_states.bfloat16())
        with torch.no_grad():
            return (rough(*half, **more)[0].float(),)

    pipe.unet.forward = forward


def run(pipe: Any, unit: Unit, prompts: list[str]) -> tuple[list[dict[str, Any]], Tensor | None]:
    """One line per image of one unit, and the images (bytes)."""
    first = unit.batch * BATCH
    group = 1 if unit.alone else BATCH
    width = unit.method.populations[0] if unit.alone else 1
    pooled = isinstance(unit.method, Pool)
    guided = steer.guided(pipe, reward="shapes", lane_width=width, keep_images=pooled)
    lines: list[dict[str, Any]] = []
    pictures: list[Tensor] = []
    for i in range(first, first + BATCH, group):
        texts = prompts[i : i + group]
        start = time.perf_counter()
        out = guided(
            texts,
            method=unit.method,
            generator=[
                torch.Generator().manual_seed(unit.seed * 100_003 + i + k) for k in range(group)
            ],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="pt",
        )
        seconds = time.perf_counter() - start
        if isinstance(unit.method, Pool):
            lines += unit.method.lines(out, texts, i, unit.seed, seconds)
        else:
            lines += _lines(unit, out, texts, i, seconds)
            pictures.append((out.images * 255).round().byte().cpu())
    return lines, torch.cat(pictures) if pictures else None


def _lines(
    unit: Unit, out: Any, texts: list[str], first: int, seconds: float
) -> Iterator[dict[str, Any]]:
    ledger, count = out.report.ledger, len(texts)
    verdicts = steer.shapes.oracle(out.images.cpu().float(), texts)
    for k, verdict in enumerate(verdicts):
        yield {
            "method": unit.name,
            "settings": recorded(unit.method),
            "compute": unit.compute,
            "caption": first + k,
            "seed": unit.seed,
            "reward": round(out.rewards[k], 6),
            "oracle": bool(verdict.all_met),
            "fraction": round(verdict.fraction, 4),
            "rows": round(ledger.denoiser_rows / count, 3),
            "decodes": round(ledger.decodes / count, 3),
            "reward_calls": round(ledger.reward_calls / count, 3),
            "backwards": round(ledger.backward_rows / count, 3),
            "seconds": round(seconds / count, 4),
        }


def done(path: Path) -> set[tuple[str, float, str, int, int]]:
    """Keys of the units that are on disk."""
    if not path.exists():
        return set()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        (r["method"], r["compute"], r["settings"], r["caption"] // BATCH, r["seed"]) for r in rows
    }


def lock(unit: Unit) -> Path:
    """The file that says which process runs a unit."""
    return IMAGES / f"{hashlib.sha256(repr(unit.key).encode()).hexdigest()[:16]}.lock"


def keep(unit: Unit, pictures: Tensor) -> None:
    """Images of a unit, for a look and for their diversity; not part of the repository."""
    name = f"{unit.name}-{unit.compute:g}-{unit.batch}-{unit.seed}.safetensors".replace(" ", "_")
    save_file({"images": pictures}, IMAGES / name)


def work(
    units: list[Unit], prompts: list[str], raw: Path, device: str, compiled: bool = False
) -> None:
    """Run the units that are missing."""
    pooled = raw.with_name(f"{raw.stem}_pool.jsonl")
    todo = [unit for unit in units if unit.key not in done(raw) | done(pooled)]
    if not todo:
        return
    pipe = steer.shapes.pipeline().to(device)
    pipe.set_progress_bar_config(disable=True)
    halved(pipe, compiled)
    run(pipe, Unit("warm-up", 1.0, steer.BestOfN(1), 0, 0), prompts)
    bar = tqdm(todo)
    for unit in bar:
        bar.set_description(f"{unit.name} {unit.compute:g}x, batch {unit.batch}")
        with common.claimed(lock(unit)) as mine:
            if mine and unit.key not in done(raw) | done(pooled):
                lines, pictures = run(pipe, unit, prompts)
                if pictures is not None:
                    keep(unit, pictures)
                common.append_lines(pooled if isinstance(unit.method, Pool) else raw, lines)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--captions", type=int, default=112, help=f"a multiple of {BATCH}")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pool", type=int, default=128, help="particles for best-of-N")
    parser.add_argument("--budgets", type=int, nargs="*", default=list(BUDGETS))
    parser.add_argument("--only", default="", help="method names, split by commas")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--compile", action="store_true", help="torch.compile the denoiser")
    parser.add_argument("--raw", type=Path, default=RAW)
    args = common.parsed(parser)
    units = plan(args.captions, args.seeds, args.pool, args.budgets)
    names = set(filter(None, args.only.split(",")))
    units = [u for u in units if not names or u.name in names]
    prompts = steer.shapes.prompts("held_out", args.captions, seed=0)
    if not args.show:
        work(units, prompts, args.raw, args.device, args.compile)
    today = {(n, float(c)): recorded(m) for c in BUDGETS for n, m, _ in arms(c, STEPS)}
    print(show(args.raw, today, DOCS))


if __name__ == "__main__":
    main()
