"""Images through several rewards, a batch of equal size at a time, decoded ahead by threads."""

from __future__ import annotations

import copy
import math
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from steer.core.types import Reward
from steer.jobs.device import usable_device
from steer.jobs.images import reason
from steer.rewards import registry
from steer.rewards.base import BaseReward
from steer.rewards.parts import as_scores


_AHEAD = 2
_WIDE = ("I", "F")


@dataclass(frozen=True)
class Task:
    """An image, the prompt to score it against, and the rewards that it lacks."""

    path: str
    size: tuple[int, int]
    prompt: str
    rewards: tuple[str, ...]


@dataclass
class Batch:
    """What became of some tasks: scores by task and reward, or why there are none."""

    tasks: Sequence[Task]
    scores: dict[tuple[Task, str], float] = field(default_factory=dict)
    failed: dict[Task, str] = field(default_factory=dict)


def load_rewards(
    names: Sequence[str],
    checkpoints: Mapping[str, str],
    device: str = "auto",
    dtype: str = "auto",
    batch: int | None = None,
) -> dict[str, Reward]:
    """The rewards by name, on one device.

    Args:
        names: As `steer.available_rewards` lists them.
        checkpoints: Local weights for some of them.
        device: `"auto"` or a torch device.
        dtype: `"auto"` (each reward's own default) or a torch dtype's name.
        batch: Images that a reward takes at once; None leaves each its own choice.

    Raises:
        ValueError: An unknown reward, device, or dtype.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """
    where = usable_device(device)
    precision = None if dtype == "auto" else dtype
    made = {}
    for name in names:
        reward = registry.reward(
            name, checkpoint=checkpoints.get(name), device=where, dtype=precision
        )
        if getattr(reward, "relative", False):
            raise ValueError(
                f"reward {name!r} compares the images of one call, so it gives no image a score of "
                "its own: name its parts instead"
            )
        if batch is not None and isinstance(reward, BaseReward) and reward.batch is not None:
            reward = copy.copy(reward)
            reward.batch = batch
        made[name] = reward
    return made


def score_all(
    tasks: Iterable[Task],
    rewards: Mapping[str, Reward],
    *,
    batch: int = 32,
    device: str = "auto",
) -> Iterator[Batch]:
    """Score tasks, in batches of at most `batch` images of one size; tasks keep their order.

    Scores are those of `rewards[name](images, prompts)` on the batch. Files that cannot be decoded
    are in `failed`, with the reason; so are images to which a reward gave no finite number.

    Raises:
        RewardError: A reward does not return one score per image.
    """
    where = usable_device(device)
    with closing(_decoded(batches(tasks, batch))) as decoded:
        for done, images in decoded:
            for rows in _by_shape(images):
                pixels = torch.from_numpy(np.stack([images[row] for row in rows])).to(where)
                floats = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
                _score(done, [done.tasks[row] for row in rows], floats, rewards)
            yield done


def batches(tasks: Iterable[Task], batch: int) -> Iterator[list[Task]]:
    """Tasks by size, sizes in the order in which they first appear, at most `batch` together."""
    sizes: dict[tuple[int, int], list[Task]] = {}
    for task in tasks:
        sizes.setdefault(task.size, []).append(task)
    for same in sizes.values():
        yield from (same[start : start + batch] for start in range(0, len(same), batch))


def decode(path: str) -> np.ndarray:
    """The pixels `(H, W, 3)` of an image file, uint8 RGB, upright; alpha is dropped.

    Raises:
        ValueError: It is damaged, or has more than 8 bits a channel; the message says which.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(_WIDE):
                raise ValueError(f"{image.mode} pixels, more than 8 bits: save it as 8-bit RGB")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(reason(error, path)) from error


def _decoded(
    chunks: Iterator[list[Task]],
) -> Generator[tuple[Batch, dict[int, np.ndarray]]]:
    """Batches with their images by row, the next ones being decoded meanwhile."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
    queue: deque[tuple[list[Task], list[Future[np.ndarray]]]] = deque()
    try:
        while True:
            for tasks in islice(chunks, _AHEAD + 1 - len(queue)):
                queue.append((tasks, [pool.submit(decode, task.path) for task in tasks]))
            if not queue:
                return
            tasks, futures = queue.popleft()
            done, images = Batch(tasks), {}
            for row, future in enumerate(futures):
                try:
                    images[row] = future.result()
                except ValueError as error:
                    done.failed[tasks[row]] = str(error)
            yield done, images
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _by_shape(images: Mapping[int, np.ndarray]) -> list[list[int]]:
    """Rows of equal shape together: a header may lie, and turned images change sides."""
    shapes: dict[Any, list[int]] = {}
    for row, image in images.items():
        shapes.setdefault(image.shape, []).append(row)
    return list(shapes.values())


@torch.no_grad()
def _score(
    done: Batch, tasks: Sequence[Task], images: Tensor, rewards: Mapping[str, Reward]
) -> None:
    for name, reward in rewards.items():
        rows = [row for row, task in enumerate(tasks) if name in task.rewards]
        if not rows:
            continue
        mine = images if len(rows) == len(tasks) else images[rows]
        scores = reward(mine, [tasks[row].prompt for row in rows])
        for row, score in zip(rows, as_scores(name, scores, mine).tolist(), strict=True):
            if math.isfinite(score):
                done.scores[tasks[row], name] = score
            else:
                done.failed[tasks[row]] = f"{name} gave {score}"
