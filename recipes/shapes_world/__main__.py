"""`python -m recipes.shapes_world`: the stages, in order or one at a time.

Several processes: `torchrun --nproc-per-node 2 -m recipes.shapes_world` (on the CPU two processes
of one thread are faster than one of two).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist

from recipes.shapes_world.recipe import Recipe


STAGES = (
    "vae",
    "clip",
    "denoiser",
    "preferences",
    "scorer",
    "tiny",
    "flow",
    "turbo",
    "export",
    "vqa",
)


def main(argv: list[str] | None = None) -> None:
    """Run the stages that are not finished yet."""
    parser = argparse.ArgumentParser(prog="python -m recipes.shapes_world", description=__doc__)
    parser.add_argument("--stages", default=",".join(STAGES), help=f"of {', '.join(STAGES)}")
    parser.add_argument("--folder", type=Path, default=Path("runs/shapes"), help="working folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on steps and scenes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    stages = args.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"--stages: unknown {sorted(unknown)}; choose from {', '.join(STAGES)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    from recipes.shapes_world import world

    recipe = Recipe(seed=args.seed).scaled(args.scale) if args.scale != 1 else Recipe(args.seed)
    if "LOCAL_RANK" in os.environ:
        cuda = args.device.startswith("cuda")
        args.device = f"cuda:{os.environ['LOCAL_RANK']}" if cuda else args.device
        dist.init_process_group("nccl" if cuda else "gloo")
    for stage in stages:
        torch.manual_seed(args.seed)
        getattr(world, f"run_{stage}")(recipe, args.folder, args.device)
        if dist.is_initialized():
            dist.barrier()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
