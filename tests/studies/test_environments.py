"""`benchmarks/environments.py`: what it counts, and that an unfinished run leaves no trace."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest


ROOT = Path(__file__).parents[2]
SUITE = """
import pytest

def test_passes(): pass
def test_fails(): assert False
@pytest.mark.skip
def test_is_skipped(): pass
@pytest.fixture
def broken(): raise RuntimeError
def test_has_an_error(broken): pass
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    found = importlib.import_module("environments")
    (tmp_path / "test_it.py").write_text(SUITE)
    return found


def test_a_run_is_counted_and_says_its_versions(script: Any, tmp_path: Path) -> None:
    code, entry = script.measured(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)])
    assert code == 1
    assert {key: entry[key] for key in ("passed", "failed", "skipped")} == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
    }
    assert {"torch", "diffusers", "transformers", "pytest"} <= set(entry["versions"])


def test_a_run_without_an_end_writes_nothing(script: Any, tmp_path: Path) -> None:
    code, entry = script.measured(["-m", "pytest", "-q", str(tmp_path / "none")])
    assert code not in script.COMPLETE and entry == {}


def test_an_entry_replaces_its_own_and_no_other(script: Any, tmp_path: Path) -> None:
    path = tmp_path / "environments.json"
    for name, passed in (("newest", 1), ("locked", 2), ("newest", 3)):
        script.write(name, {"passed": passed}, path)
    assert json.loads(path.read_text()) == {"locked": {"passed": 2}, "newest": {"passed": 3}}


def test_what_is_written_down_names_its_versions(script: Any) -> None:
    """Not that nothing failed: one failure would then make itself come true in the next run."""
    entries = json.loads(script.RAW.read_text()) if script.RAW.exists() else {}
    assert set(entries) <= set(script.NAMES)
    for entry in entries.values():
        assert entry["passed"] > entry["failed"] and entry["date"] and entry["python"]
        assert {"torch", "torchvision", "transformers", "diffusers"} <= set(entry["versions"])
