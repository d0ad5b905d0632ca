"""The cache of remote scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from steer.rewards.remote.answers import Answers, answer_key


def test_what_was_kept_is_there_for_the_next_process(tmp_path: Path) -> None:
    Answers(tmp_path / "cache").put("abcd", 0.25, model="m")
    assert Answers(tmp_path / "cache").get("abcd") == 0.25
    assert Answers(tmp_path / "cache").get("abce") is None
    assert Answers(None).get("abcd") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"score": "1"}', '{"score": 7}', "[" * 100_000])
def test_a_damaged_file_counts_as_none(tmp_path: Path, text: str) -> None:
    answers = Answers(tmp_path)
    answers.put("abcd", 0.25)
    (tmp_path / "ab" / "abcd.json").write_text(text)
    assert Answers(tmp_path).get("abcd") is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache=.*not a folder that can be made"):
        Answers(tmp_path / "file")


def test_keys_differ_with_everything_that_is_asked() -> None:
    keys = {
        answer_key(b"ab", model="m", question="q"),
        answer_key(b"ac", model="m", question="q"),
        answer_key(b"ab", model="n", question="q"),
        answer_key(b"ab", model="m", question="r"),
    }
    assert len(keys) == 4
