"""Images through several rewards, a batch of equal size at a time, decoded ahead by threads."""

from __future__ import annotations

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
from PIL import ImageOps
from torch import Tensor

from steer.core.files.png import open_image
from steer.core.types import Reward
from steer.jobs.device import usable_device
from steer.jobs.image_files import reason
from steer.jobs.image_prompts import without_prompt
from steer.jobs.reward_loader import RewardLoader
from steer.jobs.score_job import IMAGES_PER_BATCH, ScoreJob
from steer.rewards.parts import check_prompts, is_relative, scores_of


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
class ScoredBatch:
    """What became of some tasks: scores by task and reward, or why there are none."""

    tasks: Sequence[Task]
    scores: dict[tuple[Task, str], float] = field(default_factory=dict)
    failed: dict[Task, str] = field(default_factory=dict)


class Scorer:
    """A job's missing scores, with the rewards for them loaded.

    Args:
        job: What to score.

    Raises:
        ValueError: An unknown reward, device or dtype; a reward that only compares the images of
            one call; images without a prompt that a reward reads.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """

    def __init__(self, job: ScoreJob) -> None:
        self.job, self.missing = job, job.missing()
        needed = {name for names in self.missing.values() for name in names}
        loader = RewardLoader(job.device, job.dtype, job.checkpoints, job.images_per_batch)
        names = [name for name in job.rewards if name in needed]
        self.rewards = {name: _single(name, loader.load(name, job.scale)) for name in names}
        readers = [name for name, reward in self.rewards.items() if reward.needs_prompt]
        lost = without_prompt(job.images, job.prompts)
        if lost is not None and readers:
            raise ValueError(f"{', '.join(readers)}: {lost}")
        for name, reward in self.rewards.items():
            wanted = (k for k, names in self.missing.items() if name in names)
            check_prompts(reward, list(dict.fromkeys(job.prompts[k] or "" for k in wanted)))

    def score(self) -> Iterator[int]:
        """Score what is missing, each batch into the job's log at once; yields their sizes.

        Raises:
            ValueError: Out of memory; what is scored is kept.
            RewardError: A reward does not return one score per image.
        """
        job, indices = self.job, {self._task(k, names): k for k, names in self.missing.items()}
        size = job.images_per_batch or IMAGES_PER_BATCH
        try:
            with job.log.appending():
                for done in score_tasks(indices, self.rewards, size=size, device=job.device):
                    scores = {job.key(indices[t], r): v for (t, r), v in done.scores.items()}
                    job.log.add(scores)
                    job.failed.update({task.path: why for task, why in done.failed.items()})
                    yield len(done.tasks)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"--images-per-batch {size}: out of memory; what is scored is kept, continue with "
                "a smaller one"
            ) from error

    def _task(self, index: int, names: tuple[str, ...]) -> Task:
        image = self.job.images[index]
        return Task(image.path, image.size or (0, 0), self.job.prompts[index] or "", names)


def _single(name: str, reward: Reward) -> Reward:
    """The reward; ValueError where it gives no image a score of its own."""
    if is_relative(reward):
        raise ValueError(
            f"reward {name!r} compares the images of one call, so it gives no image a score of "
            "its own: name its parts instead"
        )
    return reward


def score_tasks(
    tasks: Iterable[Task],
    rewards: Mapping[str, Reward],
    *,
    size: int = IMAGES_PER_BATCH,
    device: str = "auto",
) -> Iterator[ScoredBatch]:
    """Score tasks, in batches of at most `size` images of equal shape; tasks keep their order.

    Scores are those of `rewards[name](images, prompts)` on the batch. Files that cannot be decoded
    are in `failed`, with the reason; so are images to which a reward gave no finite number.

    Raises:
        RewardError: A reward does not return one score per image.
    """
    where = usable_device(device)
    with closing(_decode(batches(tasks, size))) as decoded:
        for done, images in decoded:
            for rows in _by_shape(images):
                pixels = torch.from_numpy(np.stack([images[row] for row in rows])).to(where)
                floats = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
                _score(done, [done.tasks[row] for row in rows], floats, rewards)
            yield done


def batches(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Tasks by shape, shapes in the order in which they first appear, at most `size` together."""
    shapes: dict[tuple[int, int], list[Task]] = {}
    for task in tasks:
        shapes.setdefault(task.size, []).append(task)
    for same in shapes.values():
        yield from (same[start : start + size] for start in range(0, len(same), size))


def decode(path: str) -> np.ndarray:
    """The pixels `(H, W, 3)` of an image file, uint8 RGB, upright; alpha is dropped.

    Raises:
        ValueError: It is damaged, or has more than 8 bits a channel; the message says which.
    """
    try:
        with open_image(path) as image:
            if image.mode.startswith(_WIDE):
                raise ValueError(f"{image.mode} pixels, more than 8 bits: save it as 8-bit RGB")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(reason(error, path)) from error


def _decode(
    chunks: Iterator[list[Task]],
) -> Generator[tuple[ScoredBatch, dict[int, np.ndarray]]]:
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
            done, images = ScoredBatch(tasks), {}
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
    done: ScoredBatch, tasks: Sequence[Task], images: Tensor, rewards: Mapping[str, Reward]
) -> None:
    for name, reward in rewards.items():
        rows = [row for row, task in enumerate(tasks) if name in task.rewards]
        if not rows:
            continue
        mine = images if len(rows) == len(tasks) else images[rows]
        scores = scores_of(name, reward, mine, [tasks[row].prompt for row in rows])
        for row, score in zip(rows, scores.tolist(), strict=True):
            if math.isfinite(score):
                done.scores[tasks[row], name] = score
            else:
                done.failed[tasks[row]] = f"{name} gave {score}"
