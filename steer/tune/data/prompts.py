"""Prompts and their categories, from a list, a file, or the bundled world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steer.core.errors import TuneError
from steer.core.files.text import PROMPTS, first_of, read_entries


_WAY_OUT = "give a list of texts, a .txt, .json, .jsonl, .csv or .tsv file, or {shapes: train}"


class Prompt(NamedTuple):
    """A text and what kind of prompt it is; the category may be empty."""

    text: str
    category: str = ""


def read_prompts(source: Any) -> list[Prompt]:
    """The different prompts that a configuration names, in order.

    Raises:
        TuneError: A source that cannot be read, holds none, or holds something else than texts.
    """
    if isinstance(source, Mapping):
        found = _shapes(source)
    elif isinstance(source, str | Path):
        found = _file(Path(source).expanduser())
    elif isinstance(source, Sequence):
        found = [_prompt(item, "prompts") for item in source]
    else:
        raise TuneError(f"prompts={source!r}: {_WAY_OUT}")
    first: dict[str, Prompt] = {}
    for prompt in found:
        first.setdefault(prompt.text, prompt)
    different = list(first.values())
    if not different or not all(prompt.text.strip() for prompt in different):
        raise TuneError(f"prompts={_short(source)}: none, or an empty one; {_WAY_OUT}")
    return different


def _shapes(source: Mapping[str, Any]) -> list[Prompt]:
    from steer.shapes import prompts

    unknown = set(source) - {"shapes", "count", "seed"}
    if unknown or source.get("shapes") not in ("train", "held_out"):
        raise TuneError(
            f"prompts={dict(source)!r}: write {{shapes: train, count: 2500, seed: 1}} (or held_out)"
        )
    texts = prompts(source["shapes"], source.get("count", 200), source.get("seed", 0))
    return [Prompt(text, shapes_category(text)) for text in texts]


def shapes_category(text: str) -> str:
    """What a caption of the bundled world asks for first: a relation, two kinds, a count, one."""
    from steer.shapes import parse

    spec = parse(text)
    if spec.relation:
        return "relation"
    if len(spec.groups) > 1:
        return "two kinds"
    return "count" if any(group.count > 1 for group in spec.groups) else "single"


def _file(path: Path) -> list[Prompt]:
    if path.suffix.lower() not in (".txt", ".json", ".jsonl", ".csv", ".tsv"):
        raise TuneError(f"prompts={str(path)!r}: {_WAY_OUT}")
    try:
        items = read_entries(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TuneError(f"prompts={str(path)!r}: cannot be read ({reason}); {_WAY_OUT}") from error
    if not isinstance(items, list):
        raise TuneError(f"prompts={str(path)!r}: must hold a list; {_WAY_OUT}")
    return [_prompt(item, str(path)) for item in items]


def _prompt(item: Any, where: str) -> Prompt:
    if isinstance(item, Mapping):
        item, category = first_of(item, PROMPTS), first_of(item, ("category",)) or ""
    else:
        category = ""
    if not isinstance(item, str):
        raise TuneError(f"{where}: {item!r} is no text, nor has it a 'prompt'; {_WAY_OUT}")
    return Prompt(item, str(category))


def _short(source: Any) -> str:
    text = repr(source)
    return text if len(text) < 80 else text[:77] + "..."
