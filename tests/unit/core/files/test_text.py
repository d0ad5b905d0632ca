"""One reader of text files: nothing in a prompt is a line break but a line break."""

from __future__ import annotations

from pathlib import Path

import pytest

from steer.core.files.text import lines, read_entries, read_json


ODD = "a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg"


def test_only_line_breaks_break_lines() -> None:
    assert lines(f"{ODD}\r\nx\ry\n\nz") == [ODD, "x", "y", "", "z"]
    assert lines("") == []
    assert lines("a\n") == ["a"]


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".csv", ".tsv"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    bodies = {".txt": ODD, ".json": '["a\u2028b"]', ".jsonl": '{"prompt": "a\u2028b"}\n'}
    body = bodies.get(suffix, "prompt\na red circle\n")
    path.write_bytes(b"\xef\xbb\xbf" + body.encode())
    (found,) = read_entries(path)
    wanted = {".txt": ODD, ".json": "a\u2028b", ".jsonl": {"prompt": "a\u2028b"}}
    assert found == wanted.get(suffix, {"prompt": "a red circle"})


def test_cells_hold_what_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,category\n"two lines\nof text, and ""more""",x\n', newline="")
    assert read_entries(path) == [{"prompt": 'two lines\nof text, and "more"', "category": "x"}]
    path.write_bytes(b'prompt\r\n"a\r\nb"\r\n')
    assert read_entries(path) == [{"prompt": "a\r\nb"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,b\nred, green,blue\n", "row 1 has 3 cells, and the header 2"),
        ("a.csv", "prompt,b\nred\n", "row 1 has 1 cells"),
        ("a.csv", "prompt,prompt\na,b\n", "'prompt' stands there twice"),
        ("a.csv", 'prompt\n"open\n', "unexpected end of data"),
        ("a.json", '{"a": 1, "a": 2}', "'a' stands there twice"),
        ("a.json", "3", "neither a list nor an object"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", '{}\n{"a":\n', "line 2"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_entries(tmp_path / name)


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_entries(tmp_path / "a.txt")


def test_json_of_bytes() -> None:
    assert read_json(b'{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "\ufeffa\u2028b\r\nc\x0cd\n"),
        ("p.json", '\ufeff["a\u2028b", "c\\fd"]'),
        ("p.jsonl", '\ufeff{"prompt": "a\u2028b"}\n"c\\fd"\n'),
        ("p.csv", '\ufeffText,n\r\n"a\u2028b",1\r\n"c\x0cd",2\r\n'),
        ("p.tsv", "\ufeffcaption\tn\na\u2028b\t1\nc\x0cd\t2\n"),
    ],
)
def test_every_command_reads_the_same_prompts(tmp_path: Path, name: str, text: str) -> None:
    from steer.cli.sample import read_prompts as _read
    from steer.jobs.compare.prompt_sets import load_prompts
    from steer.tune.data.prompts import read_prompts

    path = tmp_path / name
    path.write_bytes(text.encode())
    wanted = ["a\u2028b", "c\x0cd"]
    assert _read(path) == wanted
    assert [prompt.text for prompt in read_prompts(str(path))] == wanted
    assert load_prompts(str(path)).texts == wanted
