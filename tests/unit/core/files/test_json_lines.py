"""Files of JSON lines: torn ones continue, and others are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from steer.core.files.json_lines import JsonLines


HEAD = {"format": "test/1"}
VALUES = [{"text": "a line\nbreak, \u2028 and un caf\u00e9"}, {"n": 1}]


def filled(path: Path) -> bytes:
    lines = JsonLines(path, HEAD)
    for value in VALUES:
        lines.append(value)
    return path.read_bytes()


def test_torn_at_any_byte_it_continues(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole")
    ends = [k + 1 for k, byte in enumerate(whole) if byte == ord("\n")]
    for kept in range(len(whole) + 1):
        path = tmp_path / "torn"
        path.write_bytes(whole[:kept])
        lines = JsonLines(path, HEAD)
        known = VALUES[: max(sum(end <= kept for end in ends) - 1, 0)]
        assert lines.read() == known
        lines.append({"new": kept})
        assert JsonLines(path, HEAD).read() == [*known, {"new": kept}]


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "none", HEAD)
    assert lines.read() == [] and lines.is_own() is False
    lines.remove()


@pytest.mark.parametrize("text", ["mine", '{"format": "test/2"}\n', "[]\n"])
def test_files_of_others(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other"
    path.write_text(text)
    lines = JsonLines(path, HEAD)
    assert not lines.is_own()
    with pytest.raises(ValueError, match="another file"):
        lines.read()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    with (tmp_path / "a").open("ab") as file:
        file.write(b"{\n")
    with pytest.raises(ValueError, match="line 4 is damaged"):
        JsonLines(tmp_path / "a", HEAD).read()
