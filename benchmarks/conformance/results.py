"""What a check says, and the file of all that was checked: one JSON line per case."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.common import append_lines


Outcome = Literal["right", "refused", "crash", "wrong", "test limit"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Result:
    """What came of one check.

    Attributes:
        outcome: `"refused"` is an error of steer's that says why, `"crash"` any other, `"wrong"` a
            result that is not what it must be. `"test limit"`: nothing that says something of
            steer, such as a plain call that does not run either.
        why: The sentence of the refusal or crash, what was wrong, or what the limit is.
        where: The place in steer's code that a crash went through last.
    """

    outcome: Outcome
    why: str = ""
    where: str = ""


@dataclass(frozen=True)
class Record:
    """One case: a test class of diffusers, with its pipeline and its inputs.

    Attributes:
        case: Its name, `folder.module:Class`; with `+ip` an IP-Adapter is loaded.
        pipeline: Name of the pipeline's class; empty where the test module cannot be imported.
        checks: By name of the check.
        why: Why the module cannot be imported.
        seconds: How long the case took.
        date: The day, as `2025-01-31`.
        versions: Of steer and what it runs on.
        kept: How many checks were taken over from earlier runs.
        since: The day of the earliest of those.
    """

    case: str
    pipeline: str
    checks: dict[str, Result] = field(default_factory=dict)
    why: str = ""
    seconds: float = 0.0
    date: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    kept: int = 0
    since: str = ""


def append(path: Path, record: Record) -> None:
    """Write one record; several processes may write to one file."""
    append_lines(path, [asdict(record)])


def load(path: Path) -> dict[str, Record]:
    """The last record of every case, in order of their names; none without a file."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = {record.case: record for record in (_record(json.loads(line)) for line in lines)}
    return {case: found[case] for case in sorted(found)}


def _record(content: dict[str, Any]) -> Record:
    checks = {name: Result(**result) for name, result in content["checks"].items()}
    return Record(**{**content, "checks": checks})


def worst(results: Iterable[Result]) -> Result:
    """The result that a reader has to know of several: wrong, crash, refused, right, test limit."""
    order: tuple[Outcome, ...] = ("wrong", "crash", "refused", "right", "test limit")
    return min(results, key=lambda result: order.index(result.outcome))
