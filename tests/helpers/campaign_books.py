"""The campaign's books: how often each thing was done, and what came of it."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any


def _count(name: str, default: int) -> int:
    return int(os.environ.get(f"STEER_CAMPAIGN_{name}", default))


KILLS, CALLS, FILES = _count("KILLS", 150), _count("CALLS", 10_000), _count("FILES", 600)
SEED = _count("SEED", 0)
OUT = os.environ.get("STEER_CAMPAIGN_OUT", "")
FAULTS = ("lost", "torn", "silently_wrong", "hangs", "tracebacks")


@dataclass
class Books:
    """Counts by kind of attack, and faults by kind with what showed them."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in FAULTS})
    started: float = field(default_factory=time.perf_counter)

    _seen: Counter[str] = field(default_factory=Counter)

    def did(self, kind: str, times: int = 1) -> None:
        """Something was done."""
        self.counts[kind] += times

    def found(self, fault: str, what: str) -> None:
        """Something went wrong: one of `FAULTS`."""
        self.faults[fault].append(what[:2000])

    def check(self) -> None:
        """Fail the test where something went wrong since the last check."""
        wrong = {name: f[self._seen[name] :] for name, f in self.faults.items()}
        wrong = {name: found for name, found in wrong.items() if found}
        self._seen = Counter({name: len(found) for name, found in self.faults.items()})
        assert not wrong, "\n".join(f"{name}: {one}" for name, f in wrong.items() for one in f[:5])

    def figures(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return {
            "counts": dict(sorted(self.counts.items())),
            **{name: len(found) for name, found in self.faults.items()},
            "shown": {name: found[:20] for name, found in self.faults.items() if found},
            "seconds": round(time.perf_counter() - self.started, 1),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        }
