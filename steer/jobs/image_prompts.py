"""Prompts from a file, for drawing or for image files, which may also carry their own."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from steer.jobs.image_files import ImageFile


FILE_COLUMNS = ("path", "file_name", "filename", "file", "image")
PROMPT_COLUMNS = ("prompt", "text", "caption")
_COLUMNS = f"a file ({', '.join(FILE_COLUMNS)}) and a prompt ({', '.join(PROMPT_COLUMNS)})"
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
        text = _text(path)
        kind = path.suffix.lower()
        if kind == ".json":
            return _from_json(json.loads(text, object_pairs_hook=_unique))
        if kind == ".jsonl":
            return _from_rows(json.loads(line) for line in text.splitlines() if line.strip())
        if kind in (".csv", ".tsv"):
            delimiter = "\t" if kind == ".tsv" else ","
            return _from_rows(csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True))
        return _lines(text)
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"prompts_file={str(path)!r}: {_why(error)}") from error


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file, stripped; `-` is stdin. OSError where there is none."""
    return _lines(_text(path))


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


def _text(path: Path) -> str:
    return sys.stdin.read() if str(path) == "-" else path.expanduser().read_text("utf-8-sig")


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _from_json(value: Any) -> list[str] | dict[str, str]:
    if isinstance(value, Mapping):
        odd = next((k for k, v in value.items() if not isinstance(v, str)), None)
        if odd is not None:
            raise ValueError(f"the prompt of {odd!r} is not a string; write {{file: prompt}}")
        return dict(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value
    if isinstance(value, list):
        return _from_rows(value)
    raise ValueError("neither an object {file: prompt} nor a list")


def _from_rows(rows: Iterable[Any]) -> dict[str, str]:
    pairs = []
    for number, row in enumerate(rows, 1):
        cells = row if isinstance(row, Mapping) else {}
        name = next((cells[c] for c in FILE_COLUMNS if c in cells), None)
        prompt = next((cells[c] for c in PROMPT_COLUMNS if c in cells), None)
        if not isinstance(name, str) or not name or not isinstance(prompt, str):
            raise ValueError(f"row {number} lacks {_COLUMNS}")
        pairs.append((name, prompt))
    return _unique(pairs)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; ValueError where a name has two values."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        if made.setdefault(name, value) != value:
            raise ValueError(f"{name!r} stands there twice, with different values")
    return made


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
