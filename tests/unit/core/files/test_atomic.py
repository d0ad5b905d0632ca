"""Files in one step: the old one or the new one, and nothing beside it."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest

from steer.core.files.atomic import file_sha256, replacement, write_atomic
from steer.core.files.tables import write_table


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacement(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with replacement(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]
    assert file_sha256(path) == hashlib.sha256(b"new").hexdigest()


def test_tables_read_back(tmp_path: Path) -> None:
    rows = [{"a": 'x, "y"\nz', "b": None}, {"a": "ü", "b": 0.1}]
    write_table(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert found == [{"a": 'x, "y"\nz', "b": ""}, {"a": "ü", "b": "0.1"}]
    write_table(tmp_path / "t.csv", [], ["path", "prompt"])
    assert (tmp_path / "t.csv").read_text() == "path,prompt\n"
