"""The field's published prompt sets, read from their files as their publishers lay them out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from steer.core.errors import PromptsError
from steer.core.files.text import lines
from steer.jobs.compare.prompt_files import COMPBENCH, DRAWBENCH, GENEVAL, HPSV2, PARTI, fetch
from steer.jobs.compare.prompts import Prompt, PromptSet


def _hpsv2() -> PromptSet:
    found = [
        Prompt(text, style)
        for style, file in HPSV2.items()
        for text in _texts(json.loads(fetch(file)), 800, f"hpsv2 {style}")
    ]
    return PromptSet("hpsv2", tuple(found), "HPS v2 benchmark, zhwang/HPDv2")


def _parti() -> PromptSet:
    text = io.StringIO(fetch(PARTI).decode("utf-8-sig"), newline="")
    rows = list(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    return _rows("parti", rows, "Prompt", "Category", 1632, "PartiPrompts, google-research/parti")


def _drawbench() -> PromptSet:
    rows = list(csv.DictReader(io.StringIO(fetch(DRAWBENCH).decode("utf-8-sig"), newline="")))
    return _rows("drawbench", rows, "Prompts", "Category", 200, "DrawBench, sayakpaul/drawbench")


def _geneval() -> PromptSet:
    rows = [json.loads(line) for line in lines(fetch(GENEVAL).decode()) if line.strip()]
    return _rows("geneval", rows, "prompt", "tag", 553, "GenEval, djghosh13/geneval")


def _compbench() -> PromptSet:
    found = []
    for category, file in COMPBENCH.items():
        texts = [line.strip() for line in lines(fetch(file).decode("utf-8-sig"))]
        found += [Prompt(text, category) for text in _texts(texts, 300, f"compbench {category}")]
    return PromptSet("compbench", tuple(found), "T2I-CompBench validation, Karine-Huang")


READERS = {
    "hpsv2": _hpsv2,
    "parti": _parti,
    "drawbench": _drawbench,
    "geneval": _geneval,
    "compbench": _compbench,
}


def _rows(
    name: str, rows: Sequence[Mapping[str, Any]], text: str, category: str, count: int, source: str
) -> PromptSet:
    if rows and not {text, category} <= set(rows[0]):
        raise PromptsError(f"prompts: {name}: its file lacks the columns {text!r}, {category!r}")
    texts = _texts([row[text] for row in rows], count, name)
    pairs = zip(texts, rows, strict=True)
    return PromptSet(name, tuple(Prompt(t, row[category]) for t, row in pairs), source)


def _texts(values: Any, count: int, name: str) -> list[str]:
    """The published texts; PromptsError where they are not the number that the set has."""
    fine = isinstance(values, list) and all(isinstance(v, str) and v.strip() for v in values)
    if not fine or len(values) != count:
        found = len(values) if isinstance(values, list) else type(values).__name__
        raise PromptsError(f"prompts: {name}: its file holds {found} texts, expected {count}")
    return [value.strip() for value in values]
