"""Two processes on one folder, a small full disk, folders that cannot be written, odd names.

The small disk is a limit on the size of a file (RLIMIT_FSIZE): writes beyond it fail as on a full
disk, without a file system of its own, which would need root.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from campaign_books import KILLS, SEED, Books
from campaign_commands import Child, files_of, preload


WORDS = ["sample", "a red circle", "two blue squares", "--steps", "2", "--compute", "1"]
TRIES = max(2, KILLS // 10)
ODD = ["a b", "[/x]", "ünï ✓", "line\nbreak", "-dash", "x" * 200, "\x1b[31m", "%s{0}", "a'b\"c"]


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    preload()


def sampled(out: Path) -> list[Any]:
    return [*WORDS, "--out", out]


def told(child: Child, code: int | None, books: Books, what: str, allowed: tuple[int, ...]) -> None:
    """A command that ends, in time, without a traceback."""
    if code is None:
        child.kill()
        books.found("hangs", what)
    elif "Traceback" in child.said or code not in allowed:
        books.found("tracebacks", f"{what} ({code}): {child.said[-800:]}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("whole")
    child = Child(sampled(place / "out"), place / "log")
    assert child.wait() == 0, child.said
    return files_of(place / "out")


def test_two_processes(tmp_path: Path, whole: dict[str, Any], books: Books) -> None:
    for turn in range(TRIES):
        out = tmp_path / f"{turn}"
        both = [Child(sampled(out), tmp_path / f"log{k}") for k in range(2)]
        codes = [child.wait() for child in both]
        for child, code in zip(both, codes, strict=True):
            told(child, code, books, "two processes", (0, 2))
        books.did("pairs of processes on one folder")
        if 0 not in codes or files_of(out) != whole:
            books.found("silently_wrong", f"two processes: {codes}")
    books.check()


def test_a_full_disk(tmp_path: Path, whole: dict[str, Any], books: Books) -> None:
    rng = random.Random(SEED)
    for _ in range(TRIES):
        limit = rng.choice([0, 1, rng.randrange(2000), rng.randrange(60_000)])

        def small(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        out, log = tmp_path / "out", tmp_path / "log"
        full = Child(sampled(out), log, small)
        code = full.wait()
        books.did("full disks")
        if code is None:
            full.kill()
            books.found("hangs", f"full disk at {limit}")
        after = Child(sampled(out), log)
        told(after, after.wait(), books, f"after a full disk at {limit}", (0,))
        if files_of(out) != whole:
            books.found("lost", f"full disk at {limit} bytes")
        shutil.rmtree(out)
    books.check()


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_odd_names(name: str, tmp_path: Path, whole: dict[str, Any], books: Books) -> None:
    out = tmp_path / name
    child = Child([*WORDS, f"--out={out}"], tmp_path / "log")
    told(child, child.wait(), books, f"folder {name!r}", (0,))
    books.did("odd names of folders")
    if files_of(out) != whole:
        books.found("silently_wrong", f"folder {name!r}")
    if "\x1b[31m" in child.said:
        books.found("silently_wrong", "an escape sequence reaches the terminal")
    books.check()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/steer", "read-only", "loop"])
def test_folders_that_cannot_be_written(place: str, tmp_path: Path, books: Books) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "read-only").mkdir(mode=0o500)
    if place == "read-only" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    child = Child(sampled(tmp_path / place), tmp_path / "log")
    told(child, child.wait(), books, f"--out {place}", (2,))
    books.did("folders that cannot be written")
    assert (tmp_path / "file").read_text() == "mine"
    books.check()
