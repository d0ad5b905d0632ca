"""What a call of `steer score` is asked to do; known without importing torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steer.core.files.score_log import Key, Row, ScoreLog, stamp_path
from steer.core.files.versions import versions
from steer.jobs.image_files import ImageFile, find_images
from steer.jobs.image_prompts import by_file, prompts_of
from steer.jobs.reward_loader import reward_parts, scale_stamp


IMAGES_PER_BATCH = 32
_TAKEN = ("path", "prompt")


@dataclass
class ScoreJob:
    """Images, their prompts, the rewards to score them with, and the scores known so far.

    Attributes:
        rewards: As they are written; the first decides the order of images.
        images: Sorted by path.
        prompts: One per image; None where there is none.
        log: Where scores are looked up and filed.
        checkpoints: Local weights of some rewards.
        device: `"auto"` or a torch device.
        dtype: `"auto"` or the precision of all rewards' weights.
        images_per_batch: Images scored at once; None is 32, or what a reward chooses.
        scale: File of the scales that all rewards are put on.
        unused: How many prompts of the prompts file belong to no image.
        failed: Why an image has no score, by its path.
    """

    rewards: Sequence[str]
    images: Sequence[ImageFile]
    prompts: Sequence[str | None]
    log: ScoreLog
    checkpoints: dict[str, str] = field(default_factory=dict)
    device: str = "auto"
    dtype: str = "auto"
    images_per_batch: int | None = None
    scale: str | None = None
    unused: int = 0
    failed: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        if self.images_per_batch is not None and self.images_per_batch < 1:
            raise ValueError(f"images_per_batch={self.images_per_batch}: at least 1")
        self.failed = {image.path: image.error for image in self.images if image.error}
        self._setups = {name: self._setup(name) for name in self.rewards}

    def key(self, index: int, reward: str) -> Key:
        """What the score of an image by a reward is filed under."""
        image = self.images[index]
        prompt = self.prompts[index] or ""
        return Key(image.absolute, image.stamp, prompt, reward, self._setups[reward])

    def scores(self, index: int) -> dict[str, float | None]:
        """An image's scores by reward; None where it has none yet."""
        return {name: self.log.get(self.key(index, name)) for name in self.rewards}

    def missing(self) -> dict[int, tuple[str, ...]]:
        """By readable image, the rewards that it has no score of; complete ones are left out."""
        readable = (index for index, image in enumerate(self.images) if not image.error)
        found = {k: tuple(r for r, s in self.scores(k).items() if s is None) for k in readable}
        return {index: names for index, names in found.items() if names}

    def rows(self) -> list[Row]:
        """The images that have a score, in their sorted order."""
        rows = [
            Row(image.path, self.prompts[index] or "", self.scores(index))
            for index, image in enumerate(self.images)
        ]
        return [row for row in rows if any(score is not None for score in row.scores.values())]

    def _setup(self, name: str) -> str:
        parts = reward_parts(name) if self.checkpoints else []
        weights = [self.checkpoints[part] for part in parts if part in self.checkpoints]
        stamps = [*map(stamp_path, weights)] + ([scale_stamp(self.scale)] if self.scale else [])
        return ", ".join([f"steer {versions()['steer']}", self.dtype, *stamps])


def make_score_job(
    paths: Sequence[Path],
    rewards: Sequence[str],
    *,
    log: Path,
    prompt: str | None = None,
    prompts_file: Path | None = None,
    checkpoints: Sequence[str] = (),
    leave_out: Sequence[Path] = (),
    device: str = "auto",
    dtype: str = "auto",
    images_per_batch: int | None = None,
    scale: str | None = None,
) -> ScoreJob:
    """The job that the command's arguments describe.

    Args:
        paths: Image files and folders.
        rewards: Each a name, weights or an ensemble, written as `steer sample --reward` takes it.
        log: File of the scores.
        prompt: One for all images.
        prompts_file: As `read_prompts` reads it; without both, the images' own prompts.
        checkpoints: `REWARD=PATH` pairs.
        leave_out: Files in the folders that are not to be scored.
        device, dtype, images_per_batch, scale: As in `ScoreJob`.

    Raises:
        ValueError: Bad rewards, paths, or prompts that do not fit the images.
        RecordError: The file of the scores cannot be used.
    """
    if prompt is not None and prompts_file is not None:
        raise ValueError("--prompt and --prompts-file: give one of them, not both")
    names = check_rewards(rewards)
    weights = read_checkpoints(checkpoints, names)
    images, unused = find_images(paths, leave_out), 0
    prompts: Sequence[str | None] = [prompt] * len(images)
    if prompts_file is not None:
        prompts, unused = by_file(images, prompts_file)
    elif prompt is None:
        prompts = prompts_of(images)
    return ScoreJob(
        names,
        images,
        prompts,
        ScoreLog(log),
        checkpoints=weights,
        device=device,
        dtype=dtype,
        images_per_batch=images_per_batch,
        scale=scale,
        unused=unused,
    )


def check_rewards(texts: Sequence[str]) -> list[str]:
    """The rewards, each once; ValueError where there is none, or one that no column can hold."""
    names = [text.strip() for text in texts if text.strip()]
    if not names:
        raise ValueError("--reward: name at least one; `steer rewards` lists them")
    for name in names:
        if "," in name and "=" not in name and "(" not in name:
            each = " ".join(f"--reward {part.strip()}" for part in name.split(","))
            raise ValueError(f"--reward {name!r}: give each its own: {each}")
        if name in _TAKEN:
            raise ValueError(f"--reward {name!r}: the table has a column of this name already")
    return list(dict.fromkeys(names))


def read_checkpoints(pairs: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    if not pairs:
        return {}
    used = [part for name in names for part in reward_parts(name)]
    weights = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if name not in used or not path:
            raise ValueError(
                f"--checkpoint {pair!r}: write REWARD=PATH with one of the rewards asked for "
                f"({', '.join(used)})"
            )
        if not os.path.exists(os.path.expanduser(path)):
            raise ValueError(f"--checkpoint {pair!r}: {path!r} does not exist")
        weights[name] = path
    return weights
