"""Every command that can be continued, killed at random moments: the same bytes in the end."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaign_books import KILLS, SEED, Books
from campaign_commands import Child, files_of, preload, write_yaml
from PIL import Image


PROMPTS = ["a red circle", "two blue squares", "a green triangle left of a red circle"]
PER_RUN = 5
"""Kills before a run is left to end."""


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of the commands: settings, images, and a small set to train on."""
    preload()
    where = tmp_path_factory.mktemp("campaign")
    write_yaml(
        where / "compare.yaml",
        {
            "prompts": PROMPTS,
            "seeds": 2,
            "steps": 2,
            "judges": ["shapes-clip"],
            "arms": ["base", {"name": "best", "compute": 4}],
        },
    )
    data = {"prompts": [*PROMPTS, "a circle", "a square"], "seeds": 3, "steps": 2, "shard": 3}
    data |= {"stored_dtype": "float32", "test_share": 0.2, "pairs": {"per_prompt": 1}}
    write_yaml(where / "data.yaml", {**data, "out": "x", "batch": 2})
    made = Child(["tune", "data", where / "data.yaml", "--out", where / "set"], where / "log")
    assert made.wait() == 0, made.said
    tune = {"data": str(where / "set"), "out": "x", "objective": "dpo", "steps": 12, "batch": 2}
    tune |= {"checkpoint_every": 3, "cpu": True, "lora": {"rank": 2}, "ema": 0.9}
    write_yaml(where / "tune.yaml", tune)
    scorer = {"model": "shapes-clip", "data": str(where / "set"), "out": "x", "steps": 8}
    scorer |= {"batch": 2, "checkpoint_every": 2, "dtype": "float32"}
    write_yaml(where / "scorer.yaml", scorer)
    images = where / "images"
    images.mkdir()
    for k in range(60):
        Image.new("RGB", (64, 64), (4 * k, 255 - 4 * k, k)).save(images / f"{k}.png")
    return where


def words_of(command: str, place: Path, out: Path) -> list[Any]:
    match command:
        case "sample":
            return ["sample", *PROMPTS, "--steps", 3, "--compute", 4, "--out", out]
        case "score":
            given = ["--prompt", "a red circle", "--reward", "shapes", "--images-per-batch", 4]
            out.mkdir(exist_ok=True)
            return ["score", place / "images", *given, "--csv", out / "t.csv"]
        case "compare":
            return ["compare", place / "compare.yaml", "--out", out]
        case "tune run":
            return ["tune", "run", place / "tune.yaml", "--out", out, "--quiet"]
        case _:
            kind = command.split()[1]
            return ["tune", kind, place / f"{kind}.yaml", "--out", out]


COMMANDS = ("sample", "score", "compare", "tune data", "tune run", "tune scorer")


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_and_continued(command: str, place: Path, books: Books) -> None:
    rng = random.Random(f"{SEED} {command}")
    out, log = place / command.replace(" ", "-"), place / "log"
    whole = Child(words_of(command, place, out), log)
    code = whole.wait()
    assert code == 0, whole.said
    length = time.monotonic() - whole.begun
    wanted = files_of(out)
    shutil.rmtree(out)
    kills, tries = 0, 0
    share = -(-KILLS // len(COMMANDS))
    while kills < share and tries < 20 + 4 * share:
        for _ in range(PER_RUN):
            tries += 1
            child = Child(words_of(command, place, out), log)
            code = child.wait(rng.uniform(0.02, 1.0) * length)
            if code is None:
                child.kill()
                kills += 1
                books.did(f"kills: steer {command}")
                books.did("kills")
                _check_whole(out, command, books)
            elif code:
                books.found("lost", f"{command}: does not continue ({code}): {child.said[-600:]}")
            else:  # it was quicker than the kill
                break
        last = Child(words_of(command, place, out), log)
        code = last.wait()
        if code is None:
            last.kill()
            books.found("hangs", f"{command}: {last.said[-300:]}")
        elif code:
            books.found("lost", f"{command}: does not end ({code}): {last.said[-600:]}")
        else:
            _compare(files_of(out), wanted, command, books)
        books.did("continued runs compared byte for byte")
        shutil.rmtree(out, ignore_errors=True)
    books.check()
    assert kills >= share


def _check_whole(out: Path, command: str, books: Books) -> None:
    """Whatever is there by its own name is whole."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_bytes()),
        ".yaml": lambda path: yaml.safe_load(path.read_text()),
        ".png": _decode,
        ".html": _ends,
    }
    for path in out.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(out).parts)
        read = readers.get(path.suffix)
        if hidden or read is None or not path.is_file():
            continue
        try:
            read(path)
        except Exception as error:
            books.found("torn", f"{command}: {path.name}: {error}")


def _decode(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _ends(path: Path) -> None:
    assert path.read_bytes().rstrip().endswith(b"</html>")


def _compare(found: dict[str, Any], wanted: dict[str, Any], command: str, books: Books) -> None:
    for name in sorted({*found, *wanted}):
        if name not in found:
            books.found("lost", f"{command}: {name} is not there")
        elif name not in wanted:
            books.found("silently_wrong", f"{command}: {name} is too much")
        elif found[name] != wanted[name]:
            one, other = str(wanted[name])[:300], str(found[name])[:300]
            books.found("silently_wrong", f"{command}: {name} differs: {one} / {other}")
