"""Choices between images of one prompt, from files: pairs, rankings, shares of votes.

A `.json` list, a `.jsonl` or a `.parquet` file; each entry has

- `prompt` (or `caption`),
- `images` (or `image_path`, as in HPD v2's files): two or more paths; or `winner` and `loser`,
- what was preferred: `preference` (or `human_preference`, `label`), a number per image, such as
  shares or counts of votes; or `choice`, the number of the chosen image; or `rank`, 1 for the best.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steer.core.errors import TuneError
from steer.core.files.text import read_entries
from steer.tune.checks import check_enough, histogram


_EXAMPLE = (
    'an entry is {"prompt": "a cat", "images": ["a.png", "b.png"], "preference": [1, 0]}, or has '
    '"winner" and "loser", "choice" or "rank"'
)


@dataclass(frozen=True)
class Choice:
    """What was preferred among a prompt's images.

    Attributes:
        prompt: The text.
        images: Files, all different.
        worth: One number per image; higher was preferred, equal ones tie.
        target: Shares that sum to 1.
    """

    prompt: str
    images: tuple[str, ...]
    worth: tuple[float, ...]
    target: tuple[float, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.prompt!r} ({', '.join(Path(image).name for image in self.images)})"


def read_choices(path: str | Path, root: str | Path | None = None) -> list[Choice]:
    """The choices in a file.

    Args:
        path: See above.
        root: What relative image paths are relative to; the file's folder by default.

    Raises:
        TuneError: A file that cannot be read, an entry that is no choice (with its number), images
            that do not exist, a pair of an image with itself, or nobody preferring anything.
    """
    path = Path(path).expanduser()
    base = Path(root).expanduser() if root is not None else path.parent
    found = [_choice(entry, f"{path.name}, entry {i}", base) for i, entry in enumerate(_read(path))]
    check_enough(len(found), 1, f"choices in {str(path)!r}", _EXAMPLE)
    missing = [image for choice in found for image in choice.images if not Path(image).is_file()]
    if missing:
        raise TuneError(
            f"{str(path)!r}: {len(missing)} images do not exist, the first is {missing[0]!r}: set "
            "root: to the folder that paths are relative to"
        )
    if all(len(set(choice.worth)) == 1 for choice in found):
        every = [share for choice in found for share in choice.target]
        raise TuneError(
            f"{str(path)!r}: every choice is a tie (histogram of shares: {histogram(every)}), so "
            "there is nothing to learn"
        )
    return found


def divide(choices: Sequence[Choice], share: float, seed: int) -> tuple[list[Choice], list[Choice]]:
    """Training and held-out choices; a prompt is wholly in one of them.

    Raises:
        TuneError: Too few prompts for both to have one.
    """
    prompts = sorted({choice.prompt for choice in choices})
    kept = round(share * len(prompts))
    if not 0 < kept < len(prompts):
        raise TuneError(
            f"test_share={share:g} of {len(prompts)} prompts is {kept}: name a held_out file, or "
            "give more prompts"
        )
    order = np.random.default_rng([seed, 59]).permutation(len(prompts))
    held = {prompts[i] for i in order[:kept]}
    train = [choice for choice in choices if choice.prompt not in held]
    return train, [choice for choice in choices if choice.prompt in held]


def digest(choices: Sequence[Choice]) -> str:
    """Sixteen hexadecimal digits that tell choices from other choices."""
    content = [(c.prompt, [Path(i).name for i in c.images], c.worth, c.target) for c in choices]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read(path: Path) -> list[Any]:
    try:
        match path.suffix.lower():
            case ".json" | ".jsonl":
                entries = read_entries(path)
            case ".parquet":
                from steer.tune.tables import arrow

                entries = arrow()[1].read_table(path).to_pylist()
            case _:
                raise TuneError(
                    f"data={str(path)!r}: name a .json, .jsonl or .parquet file; {_EXAMPLE}"
                )
    except (OSError, ValueError) as error:
        if isinstance(error, TuneError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise TuneError(f"data={str(path)!r}: cannot be read ({reason})") from error
    if not isinstance(entries, list):
        raise TuneError(f"data={str(path)!r}: must hold a list; {_EXAMPLE}")
    return entries


def _choice(entry: Any, where: str, base: Path) -> Choice:
    if not isinstance(entry, Mapping):
        raise TuneError(f"{where}: {entry!r} is no mapping; {_EXAMPLE}")
    prompt = entry.get("prompt", entry.get("caption"))
    images = entry.get("images", entry.get("image_path"))
    worth = None
    if entry.get("winner") is not None and entry.get("loser") is not None:
        images, worth = [entry["winner"], entry["loser"]], [1.0, 0.0]
    if not isinstance(prompt, str) or not isinstance(images, list | tuple) or len(images) < 2:
        raise TuneError(f"{where}: needs a prompt and at least two images; {_EXAMPLE}")
    worth = _worth(entry, len(images), where) if worth is None else worth
    names = [str(image) for image in images]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TuneError(f"{where}: {twice!r} is compared with itself; leave this entry out")
    top = [value == max(worth) for value in worth]
    shares = worth if "rank" not in entry else [float(is_top) for is_top in top]
    total = sum(shares)
    even = [1 / len(shares)] * len(shares)
    return Choice(
        prompt,
        tuple(str(base / name) for name in names),
        tuple(worth),
        tuple(share / total for share in shares) if total else tuple(even),
    )


def _worth(entry: Mapping[str, Any], count: int, where: str) -> list[float]:
    """One number per image; higher was preferred."""
    for key in ("preference", "human_preference", "label"):
        if entry.get(key) is not None:
            values = _numbers(entry[key], count, f"{where}: {key}")
            if min(values) < 0:
                raise TuneError(f"{where}: {key}={list(values)}: shares or counts, at least 0")
            return values
    if entry.get("choice") is not None:
        chosen = entry["choice"]
        if type(chosen) is not int or not 0 <= chosen < count:
            raise TuneError(f"{where}: choice={chosen!r}: the number of an image, 0 to {count - 1}")
        return [float(i == chosen) for i in range(count)]
    if entry.get("rank") is not None:
        return [-value for value in _numbers(entry["rank"], count, f"{where}: rank")]
    raise TuneError(f"{where}: says nothing of what was preferred; {_EXAMPLE}")


def _numbers(values: Any, count: int, what: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise TuneError(f"{what}={values!r}: give one finite number for each of {count} images")
    return numbers
