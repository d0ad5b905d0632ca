"""What commands find in their folders: files of others, torn and swapped ones, a full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from steer.cli.app import app
from steer.core.files.run_folder import RunFolder


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def sample(out: Path, *more: str) -> Result:
    words = ["sample", "a red circle", "two blue squares", "--steps", "2", "--compute", "1"]
    return run(*words, "--out", out, *more)


def told(result: Result) -> str:
    """The one line on stderr of a refusal."""
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("steer: ")]
    assert "Traceback" not in result.output
    return line


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    assert sample(out).exit_code == 0
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["report.html", "run.jsonl", "images/holiday.png"])
def test_files_of_others_are_not_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert name.partition("/")[0] in told(sample(tmp_path / "out"))
    assert path.read_text() == "mine"


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert sample(tmp_path).exit_code == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _swap(path: Path) -> None:
    Image.new("RGB", (64, 64)).save(path)


@pytest.mark.parametrize("damage", [_truncate, _swap, Path.unlink, lambda p: p.write_bytes(b"")])
def test_images_that_are_not_the_recorded_ones_are_drawn_again(
    copy: Path, finished: Path, damage: Callable[[Path], Any]
) -> None:
    damage(copy / "images" / "0001-0.png")
    assert sample(copy).exit_code == 0
    for name in ("0000-0.png", "0001-0.png"):
        with Image.open(copy / "images" / name) as a, Image.open(finished / "images" / name) as b:
            assert a.tobytes() == b.tobytes()
    assert not RunFolder.load(copy).missing()


def test_a_page_that_was_never_written_is_written(copy: Path) -> None:
    (copy / "report.html").unlink()
    before = pngs(copy)
    result = sample(copy)
    assert result.exit_code == 0 and "nothing to do" not in result.output
    assert (copy / "report.html").is_file()
    assert pngs(copy) == before
    assert "nothing to do" in sample(copy).output


def test_killed_before_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.fork()
    if not pid:
        import steer.pipeline.report.page as page

        page.write_report = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        sample(tmp_path / "out")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    before = pngs(tmp_path / "out")
    assert len(RunFolder.load(tmp_path / "out").entries) == 2
    assert sample(tmp_path / "out").exit_code == 0
    assert pngs(tmp_path / "out") == before
    assert (tmp_path / "out" / "report.html").is_file()
    assert RunFolder.load(tmp_path / "out").status == "finished"


@pytest.mark.parametrize("text", ["", "{", "[" * 99_999, "3", '{"format": "steer-run/1"}'])
def test_a_damaged_record_is_told_and_has_a_way_out(copy: Path, text: str) -> None:
    (copy / "run.json").write_text(text)
    line = told(sample(copy))
    assert "run.json" in line
    (copy / "run.json").unlink()
    assert sample(copy).exit_code == 0


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        result = sample(out)
        good = result.exit_code == 2 and "the disk is full" in result.stderr
        os._exit(0 if good and "Traceback" not in result.output else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sample(out).exit_code == 0
    assert not [path for path in out.rglob(".*.tmp")]
    json.loads((out / "run.json").read_bytes())


def test_the_demo_replaces_no_other_run(copy: Path) -> None:
    from steer.cli.demo import demo

    before = pngs(copy)
    with pytest.raises(ValueError, match="holds a run of 'sample'"):
        demo(copy, captions=1)
    assert pngs(copy) == before
