"""What is imported before there is anything to do: seconds that a newcomer waits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from steer.core.files.run_folder import RunFolder
from steer.jobs.sample_job import SampleJob


SLOW = {"torch", "diffusers", "transformers", "open_clip", "scipy", "numpy", "PIL"}
PROGRAM = """
import json, sys
import steer
from steer.cli.app import app
try:
    app()
except SystemExit as end:
    print(json.dumps([end.code, list(sys.modules)]))
"""


def imported(*words: object) -> tuple[int, set[str], str]:
    """The exit code of a command in a new process, what it imported, and what it said."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *said, told = done.stdout.splitlines()
    code, modules = json.loads(told)
    return code, set(modules), " ".join([*said, done.stderr])


@pytest.mark.parametrize("words", [("rewards", "--help"), ("sample", "--help")])
def test_help_imports_no_torch(words: tuple[str, ...]) -> None:
    code, modules, _ = imported(*words)
    assert code == 0 and not modules & SLOW


def test_a_refusal_imports_no_torch(tmp_path: Path) -> None:
    code, modules, said = imported("sample", "a red circle", "--steps", 0, "--out", tmp_path)
    assert code == 2 and "steps=0: must be at least 1" in said
    assert not modules & SLOW


def test_a_finished_run_imports_no_torch(tmp_path: Path) -> None:
    job = SampleJob(("a red circle",))
    run = RunFolder.create(tmp_path, job.to_dict(), kind="sample", command="")
    (tmp_path / "0.png").write_bytes(b"an image")
    run.add({"index": 0, "images": ["0.png"]})
    run.close("finished")
    (tmp_path / "report.html").write_text("a page")
    code, modules, said = imported("sample", "a red circle", "--out", tmp_path)
    assert code == 0 and "nothing to do" in said
    assert not modules & SLOW
