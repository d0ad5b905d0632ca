"""A method from the shell: a name with its arguments, an expression, or a YAML file."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from steer.cli.app import app
from steer.jobs.job import Job
from steer.methods import Tree
from steer.methods.text import parse_method


def test_the_command_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Job] = []
    monkeypatch.setattr("steer.cli.app._sample", lambda job, *_: seen.append(job))
    file = tmp_path / "method.yaml"
    file.write_text("Tree: {iterations: 8}\n")
    for words in (["smc", "--method-args", "n=8, when=every(4)"], [str(file)]):
        given = ["sample", "a", "--out", str(tmp_path / "out"), "--method", *words]
        result = CliRunner().invoke(app, given, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert [job.method for job in seen] == ["smc(n=8, when=every(4))", {"Tree": {"iterations": 8}}]
    assert parse_method(seen[1].to_dict()["method"]) == Tree(iterations=8)
    assert seen[1].compute is None
    lost = ["sample", "a", "--out", str(tmp_path / "out"), "--method", str(tmp_path / "no.yaml")]
    result = CliRunner().invoke(app, lost)
    assert result.exit_code == 2 and "no.yaml" in result.stderr
