"""SIGTERM and Ctrl-C in every long command: one line, exit 130, at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def started(*words: object) -> subprocess.Popen[str]:
    """A command that Ctrl-C reaches, as in a terminal; a suite run in the background ignores it."""
    return subprocess.Popen(
        [sys.executable, "-m", "steer.cli.entry", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stopped(process: subprocess.Popen[str], number: int) -> str:
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    return " ".join((out + err).split())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sample_ends_with_one_line_and_continues(tmp_path: Path, number: int) -> None:
    words = ["sample", *(f"{n} red circles" for n in ("one", "two", "three")), "--steps", "30"]
    process = started(*words, "--compute", "30", "--out", tmp_path / "out")
    until = time.monotonic() + 120
    while not (tmp_path / "out" / "run.json").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert "the same command continues" in stopped(process, number)


LOST = """
import signal, sys, time, types, weakref
from steer.cli import entry

class Kept: ...

def app():
    kept = Kept()
    seen = weakref.ref(kept, lambda _: signal.raise_signal(signal.SIGINT))
    del kept
    time.sleep(60)

sys.modules["steer.cli.app"] = types.SimpleNamespace(app=app)
entry.run()
"""


def test_an_interrupt_that_python_loses_in_a_callback_comes_again() -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LOST],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 130 and time.monotonic() - start < 30
    assert done.stderr == "steer: interrupted; the same command continues\n"


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.4, 0.9])
def test_in_start_up(tmp_path: Path, after: float) -> None:
    process = started("score", tmp_path, "--reward", "shapes")
    time.sleep(after)
    if process.poll() is not None:
        pytest.skip("it was over already")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err or "steer" not in err  # Python itself may not have started yet
