"""Commands of steer in forked processes: started, killed, and compared by their bytes."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm.std import TqdmDefaultWriteLock  # pyright: ignore[reportAttributeAccessIssue]


TqdmDefaultWriteLock.mp_lock = None  # forks would share it, and a killed one keeps it
SLOW = 180.0
"""Seconds after which a command hangs."""

_MODULES = (
    "accelerate",
    "diffusers.optimization",
    "diffusers.training_utils",
    "jinja2",
    "peft",
    "pyarrow.parquet",
    "rich.table",
    "scipy.stats",
    "steer.cli.app",
    "steer.cli.summary",
    "steer.jobs.compare.job",
    "steer.jobs.compare.page",
    "steer.jobs.sampling",
    "steer.jobs.scoring",
    "steer.pipeline.report.page",
    "steer.tune.data.make",
    "steer.tune.scorer.fit",
    "steer.tune.scorer.latents",
    "steer.tune.trainer",
    "transformers.models.clip.modeling_clip",
)
_TIMES = ("seconds", "updated", "started", "when", "created", "last_run", "peak_bytes", "command")


class Child:
    """A command in a process of its own, which a fork makes: nothing is imported again."""

    def __init__(
        self, words: Sequence[object], log: Path, before: Callable[[], None] | None = None
    ) -> None:
        self.log, self.begun = log, time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            _run([str(word) for word in words], log, before)

    def wait(self, seconds: float = SLOW) -> int | None:
        """The exit code; None where it has not ended by then."""
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= until:
                return None
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""


def _run(words: list[str], log: Path, before: Callable[[], None] | None) -> None:
    """In the child: the command with its output in `log`, ended without the parent's exits."""
    code = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        if before is not None:
            before()
        from steer.cli.app import app

        try:
            app(words, standalone_mode=True)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def files_of(folder: Path) -> dict[str, Any]:
    """All that a command made, without what tells of time and place."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and path.name != ".steer.lock":
            found[name] = _content(path, folder)
    return found


def _content(path: Path, folder: Path) -> Any:
    data = path.read_bytes()
    match path.suffix:
        case ".json":
            found = json.loads(data)
            if isinstance(found, dict) and isinstance(found.get("sha256"), str):
                del found["sha256"]  # of the file itself, times included
            return _without_times(found)
        case ".html":  # it tells times; that it is whole is enough
            return data.rstrip().endswith(b"</html>")
        case ".csv":
            return _columns(data.decode())
        case ".pt":
            return _plain(torch.load(path, map_location="cpu", weights_only=True))
        case _:
            return data


def _columns(text: str) -> list[dict[str, str]]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [{k: v for k, v in row.items() if k not in _TIMES} for row in rows]


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().view(-1).tolist())
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def preload() -> None:
    """Import, before the forks, what commands import; and build the bundled pipeline once."""
    for name in _MODULES:
        importlib.import_module(name)
    from steer.rewards import reward
    from steer.shapes import pipeline

    pipeline("cpu")
    reward("shapes")


def write_yaml(path: Path, value: Any) -> Path:
    path.write_text(yaml.safe_dump(value), "utf-8")
    return path
