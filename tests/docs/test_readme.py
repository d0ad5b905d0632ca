"""The README shows only what works as typed."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steer.cli.app import app


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_make_targets_are_what_ci_runs() -> None:
    shown = set(re.findall(r"^    make (\w+)$", README, re.MULTILINE))
    run = set(re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert shown == {"demo", "test"}
    assert shown <= run <= targets


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert links and all((ROOT / link).exists() for link in links)


def test_the_shell_example_runs_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = re.findall(r"^    steer (sample .*)$", README, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "first"
    assert (folder / "report.html").exists()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_the_table_is_the_committed_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    show = importlib.import_module("show")
    assert show.steering_table(show.load("steering")) in README
