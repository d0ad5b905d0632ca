"""Text of users is text: on a terminal, in markup, in spreadsheets, in files that are no images."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from steer.cli.app import app
from steer.core.errors import RecordError
from steer.core.files.names import visible
from steer.core.files.png import open_image, read
from steer.core.files.tables import write_table


def test_what_a_terminal_obeys_is_written_out() -> None:
    assert visible("a\x1b[2Jb\x9bc\u202ed\x07") == r"a\x1b[2Jb\x9bc\u202ed\x07"
    assert visible("un café ✓ 猫\n\t") == "un café ✓ 猫\n\t"
    assert visible(os.fsdecode(b"a\xff")) == r"a\udcff"


def test_cells_are_no_formulas(tmp_path: Path) -> None:
    words = ['=HYPERLINK("x")', "+1", "-a", "@b", "a=b", ""]
    write_table(tmp_path / "t.csv", [{"prompt": word, "score": -0.5} for word in words])
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == ["'" + word for word in words[:4]] + words[4:]
    assert rows[0]["score"] == "-0.5"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "[/x] \x1b[31m"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    chunk = PngInfo()
    chunk.add_itxt("steer", "[" * 200_000)
    Image.new("RGB", (8, 8)).save(folder / "deep.png", pnginfo=chunk)
    chunk = PngInfo()
    chunk.add_itxt("steer", '{"prompt": "\\ud800"}')
    Image.new("RGB", (8, 8)).save(folder / "half.png", pnginfo=chunk)
    Image.new("RGB", (8, 8)).save(folder / "eps.png", "EPS")
    os.mkfifo(folder / "pipe.png")
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(os.path.join(os.fsencode(folder), b"\xff\xfe.png"), "PNG")
    return folder


def test_bad_files_stop_nothing(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images.parent)
    words = ["score", str(images), "--reward", "shapes", "--prompt", "a red circle"]
    result = CliRunner().invoke(app, [*words, "--csv", "t.csv", "--sheet", "s.png"])
    assert result.exit_code == 1, result.output
    assert "3 of 7 images could not be scored" in result.stderr
    assert "\x1b[31m" not in result.output
    with Path("t.csv").open(newline="", errors="surrogateescape") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_only_the_formats_that_are_meant(images: Path) -> None:
    with pytest.raises(OSError), open_image(images / "eps.png"):
        pass
    with pytest.raises(ValueError, match="no ordinary file"), open_image(images / "pipe.png"):
        pass
    with pytest.raises(RecordError, match="nested too deeply"):
        read(images / "deep.png")


def test_a_folder_named_like_markup(images: Path) -> None:
    words = ["sample", "a red circle [/b] \x1b[2J", "--steps", "1", "--compute", "1", "--out"]
    result = CliRunner().invoke(app, [*words, str(images / "[/out]")])
    assert result.exit_code == 0, result.output
    assert "\x1b[2J" not in result.output
    refused = CliRunner().invoke(app, ["sample", os.fsdecode(b"\xff"), "--out", str(images / "o")])
    assert refused.exit_code == 2 and "is not UTF-8" in refused.stderr
