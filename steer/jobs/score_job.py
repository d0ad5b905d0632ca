"""What a call of `steer score` is asked to do; known without importing torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steer.core.files.score_log import Key, Row, ScoreLog, stamped
from steer.core.files.versions import versions
from steer.jobs.images import ImageFile, find_images
from steer.jobs.prompts import by_file, carried


_TAKEN = ("path", "prompt")


@dataclass
class ScoreJob:
    """Images, their prompts, the rewards to score them with, and the scores known so far.

    Attributes:
        rewards: Names; the first decides the order of images.
        images: Sorted by path.
        prompts: One per image; None where there is none.
        log: Where scores are looked up and filed.
        checkpoints: Local weights of some rewards.
        dtype: `"auto"` or the precision of all rewards' weights.
        unused: How many prompts of the prompts file belong to no image.
        failed: Why an image has no score, by its path.
    """

    rewards: Sequence[str]
    images: Sequence[ImageFile]
    prompts: Sequence[str | None]
    log: ScoreLog
    checkpoints: dict[str, str] = field(default_factory=dict)
    dtype: str = "auto"
    unused: int = 0
    failed: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
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

    def lacking(self) -> dict[int, tuple[str, ...]]:
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
        weights = self.checkpoints.get(name)
        parts = [
            f"steer {versions()['steer']}",
            self.dtype,
            *([stamped(weights)] if weights else []),
        ]
        return ", ".join(parts)


def make_job(
    paths: Sequence[Path],
    reward: str,
    *,
    log: Path,
    prompt: str | None = None,
    prompts_file: Path | None = None,
    checkpoints: Sequence[str] = (),
    dtype: str = "auto",
    leave_out: Sequence[Path] = (),
) -> ScoreJob:
    """The job that the command's arguments describe.

    Args:
        paths: Image files and folders.
        reward: Names with commas between.
        log: File of the scores.
        prompt: One for all images.
        prompts_file: As `read_prompts` reads it; without both, the images' own prompts.
        checkpoints: `REWARD=PATH` pairs.
        dtype: Precision, as `load_rewards` takes it.
        leave_out: Files in the folders that are not to be scored.

    Raises:
        ValueError: Bad names, paths, or prompts that do not fit the images.
        RecordError: The file of the scores cannot be used.
    """
    if prompt is not None and prompts_file is not None:
        raise ValueError("--prompt and --prompts-file: give one of them, not both")
    names = reward_names(reward)
    weights = _checkpoints(checkpoints, names)
    images, unused = find_images(paths, leave_out), 0
    prompts: Sequence[str | None] = [prompt] * len(images)
    if prompts_file is not None:
        prompts, unused = by_file(images, prompts_file)
    elif prompt is None:
        prompts = carried(images)
    return ScoreJob(names, images, prompts, ScoreLog(log), weights, dtype, unused)


def reward_names(text: str) -> list[str]:
    """The rewards in a list with commas, each once; ValueError where that is not what it is."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--reward {text!r}: name at least one; `steer rewards` lists them")
    if any(mark in text for mark in "=()"):
        raise ValueError(
            f"--reward {text!r}: rewards stand side by side here, without weights or ensembles; "
            "name them with commas between, as in 'hpsv2,pickscore'"
        )
    if taken := next((name for name in names if name in _TAKEN), None):
        raise ValueError(f"--reward {taken!r}: the table has a column of this name already")
    return list(dict.fromkeys(names))


def _checkpoints(pairs: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    weights = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if name not in names or not path:
            raise ValueError(
                f"--checkpoint {pair!r}: write REWARD=PATH with one of the rewards asked for "
                f"({', '.join(names)})"
            )
        if not os.path.exists(os.path.expanduser(path)):
            raise ValueError(f"--checkpoint {pair!r}: {path!r} does not exist")
        weights[name] = path
    return weights
