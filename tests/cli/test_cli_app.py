"""`steer app` refused in one sentence, and its warning where others reach it."""

from __future__ import annotations

import importlib.util
import socket

import pytest
from typer.testing import CliRunner

from steer.cli.app import app
from steer.jobs.studio.process import open_studio


def refused(*words: str) -> str:
    result = CliRunner().invoke(app, ["app", *words])
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_without_its_extra_it_says_which_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "gradio" else real(name)
    )
    said = "steer: gradio not installed: run pip install 'steer-diffusion[app]'"
    assert refused() == said


def test_places_and_names_that_cannot_be_used() -> None:
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "taken by another process" in refused("--port", port)
    assert "is unknown" in refused("--reward", "nonsense", "--port", "0")
    assert "pipeline='nonsense': unknown" in refused("--pipeline", "nonsense", "--port", "0")


def test_other_machines_are_warned_of() -> None:
    pytest.importorskip("gradio")
    with (
        socket.create_server(("0.0.0.0", 0)) as taken,
        pytest.warns(UserWarning, match=r"--host 0\.0\.0\.0: whoever reaches this machine"),
        pytest.raises(ValueError, match="taken by another process"),
    ):
        open_studio(host="0.0.0.0", port=taken.getsockname()[1])
