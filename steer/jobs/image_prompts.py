"""Prompts from a file, for drawing or for image files, which may also carry their own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from steer.core.files.text import PROMPTS, first_of, read_entries, unique
from steer.jobs.image_files import ImageFile


FILE_COLUMNS = ("path", "file_name", "filename", "file", "image")
_COLUMNS = f"a file ({', '.join(FILE_COLUMNS)}) and a prompt ({', '.join(PROMPTS)})"
_SHOWN = 3


def read_prompts(path: Path) -> list[str] | dict[str, str]:
    """The prompts in a file: by image name, or a list in the order of the sorted images.

    By its suffix: `.json` holds an object `{file: prompt}`, a list of objects with a file and a
    prompt, or a list of strings; `.jsonl` one object per line; `.csv` and `.tsv` a header with a
    file column and a prompt column. Anything else, and `-` for stdin, is text with one prompt per
    line; empty lines do not count.

    Raises:
        ValueError: The file is missing, cannot be read so, or names an image twice differently.
    """
    try:
        found = read_entries(path)
        return found if _are_texts(found) else _from_rows(found)
    except (OSError, ValueError) as error:
        raise ValueError(f"prompts_file={str(path)!r}: {_why(error)}") from error


def by_file(images: Sequence[ImageFile], path: Path) -> tuple[list[str], int]:
    """A prompt for each image from the file `path`, and how many of its prompts went unused.

    A name in the file stands for every image whose path ends with it; the longest name wins.

    Raises:
        ValueError: The file cannot be read, or leaves an image without a prompt.
    """
    prompts = read_prompts(path)
    if isinstance(prompts, list):
        if len(prompts) != len(images):
            raise ValueError(
                f"prompts_file={str(path)!r}: {len(prompts)} prompts for {len(images)} images; "
                "write one per image, in the images' sorted order, or name the images (.json, "
                ".jsonl, .csv)"
            )
        return prompts, 0
    table = {_parts(name): prompt for name, prompt in prompts.items()}
    keys = [_longest(PurePath(image.absolute).parts, table) for image in images]
    lost = [image.path for image, key in zip(images, keys, strict=True) if key is None]
    if lost:
        raise ValueError(
            f"prompts_file={str(path)!r}: no prompt for {_some(lost, len(images))}; add them, or "
            "name only the images that it covers"
        )
    used = [key for key in keys if key is not None]
    return [table[key] for key in used], len(table) - len(set(used))


def prompts_of(images: Sequence[ImageFile]) -> list[str | None]:
    """The prompts that images written by `steer sample` carry."""
    return [image.prompt for image in images]


def without_prompt(images: Sequence[ImageFile], prompts: Sequence[str | None]) -> str | None:
    """What to say about readable images that have no prompt; None when all have one."""
    pairs = zip(images, prompts, strict=True)
    lost = [image.path for image, prompt in pairs if prompt is None and not image.error]
    if not lost:
        return None
    return (
        f"no prompt for {_some(lost, len(images))}: give --prompt or --prompts-file; only PNG "
        "files from `steer sample` carry their own"
    )


def _are_texts(found: list[Any] | dict[str, Any]) -> bool:
    """Whether these are prompts already, texts or an object of them; ValueError where mixed."""
    values = found.values() if isinstance(found, dict) else found
    odd = next((value for value in values if not isinstance(value, str)), None)
    if odd is not None and isinstance(found, dict):
        name = next(key for key, value in found.items() if value is odd)
        raise ValueError(f"the prompt of {name!r} is not a string; write {{file: prompt}}")
    return odd is None and bool(found)


def _from_rows(rows: Iterable[Any]) -> dict[str, str]:
    pairs = []
    for number, row in enumerate(rows, 1):
        cells = row if isinstance(row, Mapping) else {}
        name, prompt = first_of(cells, FILE_COLUMNS), first_of(cells, PROMPTS)
        if not isinstance(name, str) or not name or not isinstance(prompt, str):
            raise ValueError(f"row {number} lacks {_COLUMNS}")
        pairs.append((name, prompt))
    return unique(pairs)


def _parts(name: str) -> tuple[str, ...]:
    path = os.path.normpath(name)
    return PurePath(os.path.abspath(path) if path.startswith("..") else path).parts


def _longest(parts: tuple[str, ...], table: Mapping[tuple[str, ...], str]) -> Any:
    return next((parts[k:] for k in range(len(parts)) if parts[k:] in table), None)


def _some(names: Sequence[str], of: int) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"{len(names)} of {of} images ({shown}{', ...' if len(names) > _SHOWN else ''})"


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
