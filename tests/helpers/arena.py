"""Small comparisons on a tiny pipeline, in processes of their own (forked: nothing is imported)."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2  # noqa: F401  imported before the fork, for all children at once
import scipy.stats  # noqa: F401
import torch
from families import build

import steer.jobs.compare.page  # noqa: F401
from steer.jobs.compare.config import Comparison, from_dict
from steer.jobs.compare.job import run
from steer.rewards import register_reward


@register_reward("test-redder")
def redder(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


@register_reward("test-evenness")
def evenness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return -images.flatten(1).std(1) + 0.001 * torch.tensor([float(len(p)) for p in prompts])


PROMPTS = ["a red circle", "two blue squares", "a <b>fish</b>"]
ARMS = [{"name": "base"}, {"name": "best", "method": "BestOfN(2)"}]


def comparison(**more: Any) -> Comparison:
    """Three prompts, two seeds, two arms, on a tiny StableDiffusionPipeline."""
    plan = {
        "pipeline": "tiny/sd",
        "prompts": PROMPTS,
        "seeds": [0, 3],
        "steps": 3,
        "guidance_scale": 3.0,
        "reward": "test-redder",
        "judges": ["test-evenness"],
        "device": "cpu",
        "arms": ARMS,
    }
    return from_dict({**plan, **more})


def compare(folder: Path, **more: Any) -> Path:
    """Run that comparison here, to its end."""
    return run(comparison(**more), folder, pipe=build("sd"), command="steer compare tiny.yaml")


def forked(work: Callable[[], Any]) -> int | None:
    """`work` in a process of its own; its exit code."""
    child = multiprocessing.get_context("fork").Process(target=_child, args=(work,))
    child.start()
    child.join(120)
    return child.exitcode


def _child(work: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    code = 0
    try:
        work()
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def contents(folder: Path, kind: str) -> dict[str, str]:
    """The files of a kind below a folder, by relative path, as digests."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / kind).rglob("*"))
        if path.is_file()
    }
