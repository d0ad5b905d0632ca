"""The results as tables in docs/families.md: how often each check holds, and every pipeline."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.conformance.checks import CHECKS, METHODS, NARROW
from benchmarks.conformance.results import OUTCOMES, Record, Result, worst


PAGE = Path(__file__).parents[2] / "docs" / "families.md"
_BLOCK = re.compile(
    r"(<!-- made by python -m benchmarks.conformance --render -->\n)"
    r".*?(<!-- end of conformance -->)",
    re.DOTALL,
)
_NUMBER = re.compile(r"(?<![\w.])(?<!B, )(?<!F, )(?<!strength=)\d+(\.\d+)?(e-?\d+)?(x\d+)*\b")
"""Sizes, counts and differences; not the 3 of `(B, 3, H, W)`, nor what to set `strength` to."""


def write(records: Mapping[str, Record], path: Path = PAGE) -> None:
    """Put the tables into the page."""
    path.write_text(rendered(path.read_text(), records))


def rendered(page: str, records: Mapping[str, Record]) -> str:
    """The page with its block of results made anew.

    Raises:
        ValueError: The page has no such block, or results of several versions are mixed.
    """
    content = block(list(records.values()))
    text, found = _BLOCK.subn(lambda part: f"{part[1]}\n{content}\n\n{part[2]}", page)
    if not found:
        raise ValueError(f"{PAGE}: has no block of results of benchmarks.conformance")
    return text


def block(records: list[Record]) -> str:
    """All that is written between the markers."""
    ran = [record for record in records if record.pipeline]
    if not ran:
        return "Not run yet."
    notes = Notes()
    rows = [_row(name, same, notes) for name, same in sorted(_by_pipeline(ran).items())]
    heads = list(METHODS)
    table = [
        "| pipeline | " + " | ".join(f"`{head}`" for head in heads) + " |",
        "|---|" + "---|" * len(heads),
        *rows,
    ]
    broken = [f"- `{record.case}`: {_safe(record.why)}" for record in records if record.why]
    parts = [
        made_with(records),
        "\n".join(summary(ran)),
        "\n".join(table),
        "\n".join(notes.lines()),
    ]
    if broken:
        parts.append("Test modules that cannot be imported:\n\n" + "\n".join(broken))
    return "\n\n".join(part for part in parts if part)


def made_with(records: Iterable[Record]) -> str:
    """Versions and days of the run.

    Raises:
        ValueError: Results of several versions.
    """
    found = list(records)
    versions = {tuple(record.versions.items()) for record in found}
    if len(versions) != 1:
        raise ValueError("results of several versions: make those of the older ones --again")
    names = ", ".join(f"{name} {version}" for name, version in versions.pop())
    first, last = min(record.date for record in found), max(record.date for record in found)
    days = first if first == last else f"{first} to {last}"
    classes = len({record.pipeline for record in found if record.pipeline})
    said = f"{len(found)} test classes of {classes} pipeline classes; {names}; {days}."
    kept, checked = sum(one.kept for one in found), sum(len(one.checks) for one in found)
    if not kept:
        return said
    since = min(record.since for record in found if record.since)
    return f"{said} {kept} of {checked} checks are of earlier runs, since {since}."


def summary(records: Iterable[Record]) -> list[str]:
    """How often each check came out how."""
    counts = {name: Counter[str]() for name in CHECKS}
    for record in records:
        for name, result in record.checks.items():
            counts.setdefault(name, Counter())[result.outcome] += 1
    lines = ["| check | " + " | ".join(OUTCOMES) + " |", "|---|" + "---:|" * len(OUTCOMES)]
    for name, count in counts.items():
        lines.append(f"| {name} | " + " | ".join(str(count[kind]) for kind in OUTCOMES) + " |")
    return lines


class Notes:
    """Sentences below the table, each once, numbered in the order of their first use."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def number(self, why: str, where: str = "") -> int:
        """The number of a sentence; those that differ in names and numbers alone share one."""
        note = general(why) + (f" ({where})" if where else "")
        if note not in self.sentences:
            self.sentences.append(note)
        return self.sentences.index(note) + 1

    def lines(self) -> list[str]:
        """The notes as Markdown."""
        return [f"{number}. {_safe(text)}" for number, text in enumerate(self.sentences, 1)]


def general(why: str) -> str:
    """A sentence without the names and numbers that change from pipeline to pipeline."""
    text = re.sub(r"\b\w*(Pipeline|Wrapper)\b", "(pipeline)", why)
    text = re.sub(rf"^({'|'.join(METHODS)}) (needs|changes)\b", r"(method) \2", text)
    text = re.sub(r"\b\w+Scheduler (on|remembers|precond|with)", r"(scheduler) \1", text)
    text = re.sub(r"prompt \d+ \('[^']*'\)", "prompt N", text)
    return _NUMBER.sub("N", text)


def cell(result: Result | None, notes: Notes) -> str:
    """One cell: `yes`, a dash where the test says nothing, the number of the reason, or nothing."""
    if result is None:
        return ""
    if result.outcome == "right":
        return "yes"
    if result.outcome == "refused":
        return f"[{notes.number(result.why)}]"
    if result.outcome == "test limit":
        return f"– [{notes.number(f'Test limit: {result.why}')}]"
    return f"**{result.outcome}** [{notes.number(result.why, result.where)}]"


def _by_pipeline(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.pipeline, []).append(record)
    return found


def _row(pipeline: str, records: list[Record], notes: Notes) -> str:
    cells = [cell(_of_method(name, records), notes) for name in METHODS]
    return f"| `{pipeline}` | " + " | ".join(cells) + " |"


def _of_method(name: str, records: list[Record]) -> Result | None:
    """The worst result of a method, of all tests of the pipeline and both lane widths, if any."""
    names = (name, f"{name}{NARROW}")
    found = [record.checks[key] for record in records for key in names if key in record.checks]
    return worst(found) if found else None


def _safe(text: str) -> str:
    """Text that Markdown leaves alone."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
