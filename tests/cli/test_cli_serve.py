"""`steer serve`, and judges in processes that are killed while `steer sample` runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from steer.cli.app import app
from steer.jobs.serving.process import is_loopback, read_token


ROOT = Path(__file__).parents[2]
SAMPLE = ["sample", *(f"{n} red circles" for n in ("one", "two", "three", "four"))]
SAMPLE += ["--steps", "4", "--compute", "2", "--no-base"]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **more}


@contextmanager
def process(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python process, and the first line that names where it listens; killed at the end."""
    started = subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(COLUMNS="200"),
        cwd=ROOT,
    )
    assert started.stdout
    try:
        lines = iter(started.stdout.readline, "")
        yield started, next(line for line in lines if any(map(str.isdigit, line)))
    finally:
        started.kill()
        started.wait(30)


def sampled(*words: object) -> Result:
    """`steer sample` in this process, which has its imports already."""
    return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)


@contextmanager
def killed_at_the_first(folder: Path, server: subprocess.Popen[str]) -> Iterator[None]:
    """The server is killed as soon as a picture is in the folder."""
    over = threading.Event()

    def watch() -> None:
        while not drawn(folder) and not over.is_set():
            time.sleep(0.01)
        server.send_signal(signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def results(folder: Path) -> list[tuple[list[float], dict[str, str]]]:
    """Rewards and digests of the images of every prompt."""
    prompts = json.loads((folder / "run.json").read_text())["prompts"]
    return [(entry["rewards"], entry["sha256"]) for entry in prompts]


def drawn(folder: Path) -> int:
    return len(list((folder / "images").glob("*.png")))


@pytest.mark.slow
def test_a_served_reward_killed_mid_run_and_back(tmp_path: Path) -> None:
    serve = ("-m", "steer.cli.entry", "serve", "shapes", "--port")
    with process(*serve, 0) as (server, line):
        url = line.split(" on ")[1].split(",")[0]
        port = url.rpartition(":")[2]
        out = tmp_path / "out"
        with killed_at_the_first(out, server):
            first = sampled(*SAMPLE, "--reward", url, "--out", out)
    assert first.exit_code == 2 and "Traceback" not in first.stderr
    assert f"reward {url} ('shapes') cannot be reached" in " ".join(first.stderr.split())
    kept = drawn(out)
    assert 0 < kept < 4
    with process(*serve, port):
        again = sampled(*SAMPLE, "--reward", url, "--out", out)
        assert again.exit_code == 0, again.stderr
    whole = sampled(*SAMPLE, "--reward", "shapes", "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.stderr
    rewards = [
        [prompt["rewards"] for prompt in json.loads((folder / "run.json").read_text())["prompts"]]
        for folder in (out, tmp_path / "whole")
    ]
    assert len(rewards[0]) == 4 and rewards[0] == rewards[1]


@pytest.mark.slow
def test_a_chat_judge_killed_mid_run_loses_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, cache = ROOT / "tests" / "helpers" / "mortal_judge.py", tmp_path / "cache"
    monkeypatch.setenv("STEER_REWARD_CACHE", str(cache))
    with process(judge, 0, 7) as (server, line):
        name = f"openai:m@http://127.0.0.1:{int(line)}/v1"
        words = (*SAMPLE, "--reward", name, "--out", tmp_path / "out")
        first = sampled(*words)
        assert server.wait(30) == -signal.SIGKILL
    assert first.exit_code == 2 and "Traceback" not in first.stderr
    assert "cannot be reached" in " ".join(first.stderr.split())
    answers = {file.name: file.stat().st_mtime_ns for file in cache.rglob("*.json")}
    assert 3 <= len(answers) <= 6
    with process(judge, int(line), 0):
        again = sampled(*words)
        after = {file.name: file.stat().st_mtime_ns for file in cache.rglob("*.json")}
        monkeypatch.setenv("STEER_REWARD_CACHE", str(tmp_path / "fresh"))
        whole = sampled(*words[:-1], tmp_path / "whole")
    assert whole.exit_code == 0, whole.stderr
    assert again.exit_code == 0, again.stderr
    assert answers.items() < after.items()  # none was asked again
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def serve(*words: str) -> str:
    result = CliRunner().invoke(app, ["serve", *words])
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_other_machines_need_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEER_TOKEN", raising=False)
    assert "--host 0.0.0.0: other machines reach it" in serve("shapes", "--host", "0.0.0.0")
    assert "the variable is not set" in serve("shapes", "--token-env", "NO_SUCH")
    monkeypatch.setenv("STEER_TOKEN", "a b")
    assert "printable ASCII" in serve("shapes")
    monkeypatch.setenv("STEER_TOKEN", "abc")
    assert read_token("0.0.0.0", None) == "abc"
    loopback = ["127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "::", "example.org"]
    assert list(map(is_loopback, loopback)) == [True] * 4 + [False] * 3


def test_names_of_rewards_elsewhere_show_how_they_are_written() -> None:
    shown = CliRunner().invoke(app, ["rewards"]).stdout.split()
    assert {"ocr", "http://<host>:<port>", "openai:<model>@<url>"} <= set(shown)


def test_places_limits_and_rewards_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.delenv("STEER_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "taken by another process" in serve("shapes", "--port", port)
    assert "not to be had" in serve("shapes", "--port", "99999")
    assert "max_batch=0" in serve("shapes", "--max-batch", "0")
    assert "is unknown" in serve("nonsense", "--port", "0")
