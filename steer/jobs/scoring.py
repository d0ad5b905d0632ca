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
from steer.jobs.spread.worker import Crew, Worker
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


@dataclass(frozen=True)
class ScoreSettings:
    """The rewards that are needed, and what they are to score.

    Attributes:
        rewards: As they are written.
        loader: What loads them.
        prompts: The different prompts that each is to read.
        lost: Why some image has no prompt; None where all have one.
        size: Images scored at once.
        scale: File of the scales that all rewards are put on.
    """

    rewards: tuple[str, ...]
    loader: RewardLoader
    prompts: Mapping[str, tuple[str, ...]]
    lost: str | None = None
    size: int = IMAGES_PER_BATCH
    scale: str | None = None

    @classmethod
    def of(cls, job: ScoreJob) -> ScoreSettings:
        """What a job lacks."""
        missing = job.missing()
        prompts: dict[str, dict[str, None]] = {name: {} for name in job.rewards}
        for index, names in missing.items():
            for name in names:
                prompts[name][job.prompts[index] or ""] = None
        needed = {name: tuple(found) for name, found in prompts.items() if found}
        return cls(
            tuple(needed),
            RewardLoader(job.device, job.dtype, job.checkpoints, job.images_per_batch),
            needed,
            without_prompt(job.images, job.prompts),
            job.images_per_batch or IMAGES_PER_BATCH,
            job.scale,
        )


@dataclass(frozen=True)
class Batch:
    """Tasks that are scored together: images of equal shape."""

    tasks: tuple[Task, ...]

    def __str__(self) -> str:
        return f"images {self.tasks[0].path!r} to {self.tasks[-1].path!r}"


class Scorer(Worker[Batch, ScoredBatch]):
    """Rewards, loaded, and the scoring of files with them.

    Args:
        settings: Which rewards, and what for.

    Raises:
        ValueError: An unknown reward, device or dtype; a reward that only compares the images of
            one call; images without a prompt that a reward reads.
        CheckpointError: Weights that cannot be found, read, or do not fit.
    """

    def __init__(self, settings: ScoreSettings) -> None:
        self.settings, load, scale = settings, settings.loader.load, settings.scale
        self.device = usable_device(settings.loader.device)
        self.rewards = {name: _single(name, load(name, scale)) for name in settings.rewards}
        readers = [name for name, reward in self.rewards.items() if reward.needs_prompt]
        if settings.lost is not None and readers:
            raise ValueError(f"{', '.join(readers)}: {settings.lost}")
        for name, reward in self.rewards.items():
            check_prompts(reward, list(settings.prompts[name]))

    def work(self, unit: Batch) -> ScoredBatch:
        """Score one batch."""
        return next(result for _, result in self.work_all([unit]))

    def work_all(self, units: Iterable[Batch]) -> Iterator[tuple[Batch, ScoredBatch]]:
        """Score batches; the files of the next ones are read meanwhile.

        Scores are those of `rewards[name](images, prompts)` on the batch. Files that cannot be
        decoded are in `failed`, with the reason; so are images to which a reward gave no finite
        number.

        Raises:
            ValueError: Out of memory.
            RewardError: A reward does not return one score per image.
        """
        try:
            with closing(_decode(iter(units))) as decoded:
                for unit, done, images in decoded:
                    for rows in _by_shape(images):
                        pixels = torch.from_numpy(np.stack([images[row] for row in rows]))
                        floats = pixels.to(self.device).permute(0, 3, 1, 2).contiguous().float()
                        _score(done, [done.tasks[row] for row in rows], floats / 255, self.rewards)
                    yield unit, done
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"--images-per-batch {self.settings.size}: out of memory; what is scored is kept, "
                "continue with a smaller one"
            ) from error


def score_missing(job: ScoreJob, crew: Crew[Batch, ScoredBatch]) -> Iterator[int]:
    """Score what is missing, each batch into the job's log at once; yields their sizes.

    Args:
        job: What to score.
        crew: A `Scorer` of `ScoreSettings.of(job)`, or several of them in a cluster.

    Raises:
        ValueError: Out of memory; what is scored is kept.
        RewardError: A reward does not return one score per image.
    """
    indices = _tasks(job)
    with job.log.appending():
        for _, done in crew.work_all(batches_of(job)):
            job.log.add({job.key(indices[t], r): v for (t, r), v in done.scores.items()})
            job.failed.update({task.path: why for task, why in done.failed.items()})
            yield len(done.tasks)


def batches_of(job: ScoreJob) -> list[Batch]:
    """What a job lacks, as the units that it is scored in."""
    return list(batches(_tasks(job), job.images_per_batch or IMAGES_PER_BATCH))


def _tasks(job: ScoreJob) -> dict[Task, int]:
    """The images that lack scores, and their indices in the job."""
    found = {}
    for index, names in job.missing().items():
        image, prompt = job.images[index], job.prompts[index] or ""
        found[Task(image.path, image.size or (0, 0), prompt, names)] = index
    return found


def _single(name: str, reward: Reward) -> Reward:
    """The reward; ValueError where it gives no image a score of its own."""
    if is_relative(reward):
        raise ValueError(
            f"reward {name!r} compares the images of one call, so it gives no image a score of "
            "its own: name its parts instead"
        )
    return reward


def batches(tasks: Iterable[Task], size: int) -> Iterator[Batch]:
    """Tasks by shape, shapes in the order in which they first appear, at most `size` together."""
    shapes: dict[tuple[int, int], list[Task]] = {}
    for task in tasks:
        shapes.setdefault(task.size, []).append(task)
    for same in shapes.values():
        yield from (Batch(tuple(same[k : k + size])) for k in range(0, len(same), size))


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
    units: Iterator[Batch],
) -> Generator[tuple[Batch, ScoredBatch, dict[int, np.ndarray]]]:
    """Batches with their images by row, the next ones being decoded meanwhile."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
    queue: deque[tuple[Batch, list[Future[np.ndarray]]]] = deque()
    try:
        while True:
            for unit in islice(units, _AHEAD + 1 - len(queue)):
                queue.append((unit, [pool.submit(decode, task.path) for task in unit.tasks]))
            if not queue:
                return
            unit, futures = queue.popleft()
            done, images = ScoredBatch(unit.tasks), {}
            for row, future in enumerate(futures):
                try:
                    images[row] = future.result()
                except ValueError as error:
                    done.failed[unit.tasks[row]] = str(error)
            yield unit, done, images
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
