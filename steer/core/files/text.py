"""Text files as people and programs write them, lines, JSON and tables: one reader for all."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


PROMPTS = ("prompt", "text", "caption")
"""What the column of prompts may be called."""

_BREAK = re.compile(r"\r\n|\n|\r")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file without its byte order mark, line breaks as they are; `-` is stdin.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8.
    """
    if str(path) == "-":
        return sys.stdin.read().removeprefix("\ufeff")
    try:
        return path.expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 ({error.reason} at byte {error.start})") from error


def lines(text: str) -> list[str]:
    r"""Lines, which end with `\n`, `\r\n` or `\r`, and with no other character.

    (`str.splitlines` also breaks at form feeds, U+0085, U+2028 and the like, which prompts hold.)
    """
    found = _BREAK.split(text)
    return found[:-1] if found and not found[-1] else found


def read_json(text: str | bytes) -> Any:
    """A JSON value; ValueError also where it is nested too deeply or holds lone surrogates.

    Objects are dicts, in which no key may stand twice with different values.
    """
    try:
        found = json.loads(text, object_pairs_hook=unique)
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone surrogate)") from None
    return found


def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; ValueError where a name has two values."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made and made[name] != value:
            raise ValueError(f"{name!r} stands there twice, with different values")
        made[name] = value
    return made


def read_entries(path: Path) -> list[Any] | dict[str, Any]:
    """What a file lists, by its suffix.

    `.json` holds a list, or an object, which is returned as it is; `.jsonl` a value per line;
    `.csv` and `.tsv` a header and rows, which become mappings of text; anything else is text with
    an entry per line, stripped. Empty lines do not count.

    Raises:
        OSError, ValueError: It cannot be read so.
    """
    text, kind = read_text(path), path.suffix.lower()
    if kind == ".json":
        found = read_json(text)
        if not isinstance(found, list | dict):
            raise ValueError("neither a list nor an object")
        return found
    if kind == ".jsonl":
        return [_json_line(n, line) for n, line in enumerate(lines(text), 1) if line.strip()]
    if kind in (".csv", ".tsv"):
        return _rows(text, "," if kind == ".csv" else "\t")
    return [line.strip() for line in lines(text) if line.strip()]


def read_texts(path: Path) -> list[str]:
    """The prompts that a file lists; see `read_entries`. Tables have a column of `PROMPTS`.

    Raises:
        OSError, ValueError: It cannot be read so, or an entry has no prompt.
    """
    found = read_entries(path)
    if isinstance(found, dict):
        raise ValueError("must hold a list of prompts")
    texts = [first_of(e, PROMPTS) if isinstance(e, Mapping) else e for e in found]
    for number, (text, entry) in enumerate(zip(texts, found, strict=True), 1):
        if not isinstance(text, str):
            raise ValueError(f"entry {number} is {entry!r}: no text, nor has it a 'prompt'")
    return texts


def first_of(entry: Mapping[Any, Any], names: Iterable[str]) -> Any:
    """The value of the first of these columns that an entry has, capitals aside; else None."""
    known = {str(name).strip().lower(): value for name, value in entry.items()}
    return next((known[name] for name in names if name in known), None)


def _json_line(number: int, line: str) -> Any:
    try:
        return read_json(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error


def _rows(text: str, delimiter: str) -> list[dict[str, str]]:
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    head, *rows = [row for row in table if row] or [[]]
    twice = next((name for name in head if head.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the column {twice!r} stands there twice")
    for number, row in enumerate(rows, 1):
        if len(row) != len(head):
            raise ValueError(
                f"row {number} has {len(row)} cells, and the header {len(head)}: put a cell that "
                f"holds {delimiter!r} in quotes"
            )
    return [dict(zip(head, row, strict=True)) for row in rows]
