"""Folders that commands write: one process at a time, nobody else's files, no leftovers."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from steer.core.errors import RecordError
from steer.core.files.folder import LOCK, check_free, held


def _hold(folder: Path, ready: object, end: object) -> None:
    with held(folder):
        ready.set()
        end.wait(60)


def test_a_second_process_is_told_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "a", ready, end))
    other.start()
    assert ready.wait(60)
    with pytest.raises(RecordError, match="another process is writing"), held(tmp_path / "a"):
        pass
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join(60)
    with held(tmp_path / "a"):
        pass


def test_leftovers_go_and_a_new_folder_without_files_too(tmp_path: Path) -> None:
    with held(tmp_path / "new"):
        assert (tmp_path / "new" / LOCK).exists()
    assert not (tmp_path / "new").exists()
    (tmp_path / ".run.json.abc.tmp").write_text("half")
    (tmp_path / "mine.tmp").write_text("mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".0000-0.png._8pphh2o.tmp").write_text("half")
    (tmp_path / "images" / "0000-0.png").write_text("whole")
    with held(tmp_path):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK, "images", "mine.tmp"]
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["0000-0.png"]


def test_files_of_others(tmp_path: Path) -> None:
    check_free(tmp_path, ["a", "b"], "steer x")
    (tmp_path / "b").symlink_to("nowhere")
    with pytest.raises(RecordError, match="'b', which steer x did not write"):
        check_free(tmp_path, ["a", "b"], "steer x")
