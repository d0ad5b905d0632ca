"""What `steer env` prints."""

from __future__ import annotations

import getpass
import platform
from importlib import metadata
from pathlib import Path

from typer.testing import CliRunner

from steer.cli.app import app


def test_versions_and_devices_and_nothing_private() -> None:
    told = CliRunner().invoke(app, ["env"]).output
    lines = dict(line.split(": ", 1) for line in told.splitlines())
    assert lines["torch"] == metadata.version("torch")
    assert lines["diffusers"] == metadata.version("diffusers")
    assert lines["python"] == platform.python_version()
    assert lines["devices"]
    private = (str(Path.home()), str(Path.cwd()), platform.node(), f"/{getpass.getuser()}/")
    assert not any(word and word in told for word in private)
