"""What the studies share: the machine's name, paired intervals, atomic JSON."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import ArrayLike
from packaging.version import Version
from scipy import stats


RESULTS = Path(__file__).parent / "results"
_RNG = "rng" if Version(scipy.__version__) >= Version("1.15") else "random_state"
PACKAGES = ("steer-diffusion", "torch", "diffusers", "transformers", "open_clip_torch")


def hardware() -> str:
    """A short name of the device for result files: `h200`, `cpu2`."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0).split()[-1].lower()
    return f"cpu{os.cpu_count()}"


def provenance() -> dict[str, Any]:
    """The command, the versions and the machine that made a result."""
    return {
        "command": " ".join(["python", *map(_relative, sys.argv)]),
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
    }


def headline(doc: str | None) -> str:
    """The first line of a study's docstring."""
    return (doc or "").strip().split("\n", 1)[0]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A study's arguments, with those that most of them share: `threads` and `device`."""
    found = argparse.ArgumentParser(description=headline(doc))
    found.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return found


def parsed(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given on the command line, with torch's threads set to it."""
    args = arguments.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def _relative(argument: str) -> str:
    path = Path(argument)
    return os.path.relpath(path) if path.is_absolute() and path.exists() else argument


def interval(values: ArrayLike, confidence: float = 0.95) -> dict[str, float]:
    """Mean of `values` with its percentile-bootstrap interval: `mean`, `low`, `high`."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2 or np.ptp(array) == 0:
        return {"mean": round(mean, 5), "low": round(mean, 5), "high": round(mean, 5)}
    seeded: Any = {_RNG: np.random.default_rng(0)}
    found = stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=confidence,
        n_resamples=4000,
        method="percentile",
        **seeded,
    ).confidence_interval
    return {"mean": round(mean, 5), "low": round(found.low, 5), "high": round(found.high, 5)}


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process may do the work that a lock file stands for.

    No other process may until it is done or dead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def append_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Append JSON lines in one write, so that a kill leaves all of them or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, "".join(json.dumps(line) + "\n" for line in lines).encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
