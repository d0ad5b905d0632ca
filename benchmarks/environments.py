"""The suite in one environment, and how it went there: versions, outcomes, seconds.

`make test-locked`, `test-newest` and `test-lowest` each replace their own entry of the file:

    python benchmarks/environments.py lowest -m pytest -n auto
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from common import RESULTS, hardware, headline, write_json


RAW = RESULTS / "environments.json"
NAMES = ("locked", "newest", "lowest")
COMPLETE = (0, 1)
"""Exit codes of a run that came to its end: all passed, or some failed."""


def versions() -> dict[str, str]:
    """Of everything that pyproject.toml names and this environment has, and of Triton."""
    found = {}
    for line in [*(requires("steer-diffusion") or ()), "triton"]:
        (name,) = re.findall(r"^[\w.-]+", line)
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an extra that is not installed, a platform without Triton
            continue
    return found


def outcome(report: Path) -> dict[str, int]:
    """How many passed, failed (errors among them) and were skipped, from pytest's own report."""
    suites = list(ElementTree.parse(report).iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def measured(command: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Exit code and entry of one run of the suite."""
    with tempfile.TemporaryDirectory() as folder:
        report, start = Path(folder) / "report.xml", time.perf_counter()
        done = subprocess.run([sys.executable, *command, f"--junitxml={report}"])
        seconds = time.perf_counter() - start
        if done.returncode not in COMPLETE:
            return done.returncode, {}
        return done.returncode, {
            "date": datetime.now(UTC).date().isoformat(),
            **outcome(report),
            "seconds": round(seconds),
            "hardware": hardware(),
            "python": platform.python_version(),
            "versions": versions(),
        }


def write(name: str, entry: dict[str, Any], path: Path = RAW) -> None:
    """Replace one environment's entry, and leave the others as they were."""
    entries = json.loads(path.read_text()) if path.exists() else {}
    entries[name] = entry
    write_json(path, {key: entries[key] for key in NAMES if key in entries})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=headline(__doc__))
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what python runs: -m pytest ...")
    given = parser.parse_args(arguments)
    code, entry = measured(given.command)
    if entry:
        write(given.name, entry)
        print(*(f"{entry[key]} {key}" for key in ("passed", "failed", "skipped")), sep=", ")
    else:
        print(f"pytest ended with {code}: nothing is written")
    return code


if __name__ == "__main__":
    sys.exit(main())
