"""A picture of every kind of search at work, for the docs: one held-out caption, real runs.

    python benchmarks/pictures.py

Columns are the stages at which a method judged its candidates (x0 previews, short runs, finished
images), rows are particles; lines lead from parents to children. What was chosen has a green frame,
what went on a black one, what was dropped is pale.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import common
import matplotlib
import torch

import steer
from steer.pipeline.report.descent import title
from steer.pipeline.report.genealogy import Block, Cell, Stage, blocks
from steer.search.method import Method


matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.offsetbox import AnnotationBbox, OffsetImage


STEPS, GUIDANCE = 20, 3.5
FRAMES = {"chosen": ("tab:green", 1.0), "kept": ("black", 1.0), "dropped": ("lightgrey", 0.35)}
SCENES: dict[str, Method] = {
    "prune": steer.Prune(6, (3, 2), (0.5, 0.65)),
    "draft": steer.Prune(8, (4, 2), (0.65, 0.7), strides=4),
    "smc": steer.SMC(4),
    "beam": steer.methods.Beam(2, 2, when=steer.at(0.3, 0.5, 0.7, 0.9)),
    "tree": steer.methods.Tree(compute=5),
    "noise": steer.methods.NoiseSearch(n=3, rounds=3),
    "guidance": steer.methods.BestOfNGuidance(4),
}


def run(guided: steer.Guided, caption: str, method: Method) -> Any:
    """One call whose trace keeps its previews."""
    return guided(
        caption,
        method=method,
        generator=torch.Generator().manual_seed(1),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="pt",
    )


def draw(trace: Any, caption: str, method: Method, path: Path) -> None:
    """One call's stages side by side."""
    found = [block for block in blocks(trace.events, 0, STEPS) if block.stages]
    columns = [(block, stage) for block in found for stage in block.stages]
    names = sorted({name for _, stage in columns for name in stage.cells})
    rows = {name: row for row, name in enumerate(names)}
    figure, axes = plt.subplots(figsize=(1.25 * len(columns) + 1.2, 1.3 * len(names) + 0.9))
    at: dict[int, tuple[float, float]] = {}
    for x, (block, stage) in enumerate(columns):
        before, at = at, dict(at)
        for name, cell in sorted(stage.cells.items()):
            here = (float(x), -float(rows[name]))
            _line(axes, block, name, here, before)
            _cell(axes, trace, cell, stage, here)
            at[name] = here
        axes.text(x, 0.62, stage.label, ha="center", fontsize=8)
    for name, row in rows.items():
        axes.text(-0.62, -row, title(name), ha="right", va="center", fontsize=8)
    axes.set_xlim(-1.1, len(columns) - 0.4)
    axes.set_ylim(0.5 - len(names), 0.95)
    axes.set_axis_off()
    axes.set_title(f"{type(method).__name__}: {caption}", fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _line(
    axes: Any, block: Block, name: int, here: tuple[float, float], before: dict[int, Any]
) -> None:
    parent, _ = block.descent.parent(name)
    source = before.get(name) or (None if parent is None else before.get(parent))
    if source is not None:
        axes.plot([source[0], here[0]], [source[1], here[1]], color="grey", lw=0.8, zorder=0)


def _cell(axes: Any, trace: Any, cell: Cell, stage: Stage, here: tuple[float, float]) -> None:
    colour, alpha = FRAMES[cell.state]
    key = None if cell.key is None else (0, *cell.key)
    if key in trace.images:
        picture = OffsetImage(trace.images[key], zoom=0.85, alpha=alpha)
        frame = {"edgecolor": colour, "linewidth": 2 if cell.state == "chosen" else 1}
        axes.add_artist(AnnotationBbox(picture, here, pad=0.1, bboxprops=frame))
    if cell.reward is not None and math.isfinite(cell.reward):
        words = f"{cell.reward:.3f}"
        axes.text(here[0], here[1] - 0.46, words, ha="center", va="center", fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=common.headline(__doc__))
    parser.add_argument("--only", nargs="*", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--caption", type=int, default=4, help="which held-out caption")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    pipe = steer.shapes.pipeline()
    pipe.set_progress_bar_config(disable=True)
    caption = steer.shapes.prompts("held_out", args.caption + 1, seed=0)[args.caption]
    guided = steer.guided(pipe, reward="shapes", keep_images=True)
    for name in args.only:
        trace = run(guided, caption, SCENES[name]).report.trace
        draw(trace, caption, SCENES[name], args.out / f"method-{name}.png")


if __name__ == "__main__":
    main()
