"""`steer score`: scores, files, resuming, exit codes; against the rewards called directly."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image, ImageOps
from typer.testing import CliRunner, Result

import steer
from steer.cli.app import app
from steer.core.files.png import read, save_png
from steer.core.files.score_log import Key, Row, ScoreLog, rank_rows, write_csv, write_json_rows
from steer.jobs import scoring
from steer.jobs.image_files import find_images
from steer.jobs.image_prompts import by_file, read_prompts
from steer.jobs.reward_loader import RewardLoader
from steer.pipeline.report.sheet import MAX_CELLS, score_sheet
from steer.rewards import register_reward


class Green:
    """Mean of the green channel; remembers what it was called with, and can stop the program."""

    calls: list[tuple[int, tuple[str, ...]]] = []  # noqa: RUF012
    stop_at: int | None = None

    def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((len(images), tuple(prompts)))
        return images[:, 1].mean((1, 2))


register_reward("test-green")(Green())
register_reward("test-length")(lambda images, prompts: [float(len(p)) for p in prompts])
register_reward("test-red", needs_prompt=False)(lambda images, prompts: images[:, 0].mean((1, 2)))
register_reward("test-small", batch=2)(lambda images, prompts: images.mean((1, 2, 3)))
register_reward("test-nan")(lambda images, prompts: images.mean((1, 2, 3)).log() * 0)
register_reward("test-memory")(lambda images, prompts: full())


def full() -> None:
    raise torch.OutOfMemoryError("out of memory")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Green.calls, Green.stop_at = [], None
    yield
    Green.stop_at = None


def noise(seed: int, height: int = 20, width: int = 24) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of one size, `1.png` to `11.png`; text order and number order differ."""
    made = tmp_path / "images"
    made.mkdir()
    for number in (1, 2, 3, 10, 11):
        noise(number).save(made / f"{number}.png")
    return made


def score(*words: Any, reward: str | list[str] = "test-green", **more: Any) -> Result:
    rewards = [reward] if isinstance(reward, str) else reward
    asked = [word for name in rewards for word in ("--reward", name)]
    arguments = ["score", *map(str, words), *asked]
    return CliRunner().invoke(app, arguments, catch_exceptions=False, **more)


def one_line(result: Result) -> str:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    return lines[0]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


def opened(rows: list[dict[str, str]]) -> Any:
    return [Image.open(row["path"]) for row in rows]


def test_scores_are_the_rewards_own(folder: Path) -> None:
    """Bit for bit those of `reward(images, prompts)`, for learned rewards and for functions."""
    names = ["shapes", "shapes-clip", "test-green"]
    result = score(folder, "--prompt", "a red circle", "--csv", "s.csv", reward=names)
    assert result.exit_code == 0, result.output
    rows = table(Path("s.csv"))
    assert [Path(row["path"]).name for row in rows] == [f"{n}.png" for n in (1, 2, 3, 10, 11)]
    for name in names:
        want = steer.reward(name, device="cpu")(opened(rows), "a red circle").tolist()
        assert [float(row[name]) for row in rows] == want
    assert Green.calls[0] == (5, ("a red circle",) * 5)


def test_sizes_are_batched_apart(folder: Path) -> None:
    """Equal sizes together, at most `--images-per-batch`; with other modes and formats."""
    wide = noise(50, 16, 40)
    wide.save(folder / "4.bmp")
    wide.convert("RGBA").save(folder / "5.webp", lossless=True)
    (folder / "deep" / "er").mkdir(parents=True)
    noise(51).convert("L").save(folder / "deep" / "er" / "gray.TIFF")
    noise(52).save(folder / "deep" / "photo.jpeg")
    result = score(
        folder, "--prompt", "x", "--csv", "s.csv", "--images-per-batch", "3", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    assert sorted(count for count, _ in Green.calls) == [1, 2, 3, 3]
    reward = steer.reward("test-green")
    for row in table(Path("s.csv")):
        want = reward(opened([row]), "x").item()
        assert float(row["test-green"]) == pytest.approx(want, abs=1e-7)


def test_turned_photos_are_scored_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(1, 8, 40).save(tmp_path / "turned.png", exif=exif)
    assert scoring.decode(str(tmp_path / "turned.png")).shape == (40, 8, 3)
    with Image.open(tmp_path / "turned.png") as image:
        want = np.asarray(ImageOps.exif_transpose(image))
    assert (scoring.decode(str(tmp_path / "turned.png")) == want).all()


def test_rewards_of_explicit_batch(folder: Path) -> None:
    """`--images-per-batch` reaches the reward without changing the shared one."""
    shared: Any = steer.reward("test-small")
    loader = RewardLoader("cpu", images_per_batch=7)
    small: Any = loader.load("test-small")
    green: Any = loader.load("test-green")
    assert small.batch == 7 and shared.batch == 2
    assert green.batch is None


def test_running_again_scores_only_what_is_new(folder: Path) -> None:
    words = (folder, "--prompt", "x", "--csv", "s.csv")
    score(*words)
    assert score(*words).exit_code == 0 and len(Green.calls) == 1
    noise(99).save(folder / "2.png")  # rewritten
    noise(98).save(folder / "7.png")  # new
    result = score(*words, reward=["test-green", "test-red"])
    assert "4 of 6 images are scored already" not in result.stdout  # all lack test-red
    assert [count for count, _ in Green.calls] == [5, 2]
    other = score(folder, "--prompt", "y", "--csv", "s.csv")  # another prompt is another score
    assert other.exit_code == 0 and Green.calls[2] == (6, ("y",) * 6)
    again = score(*words)
    assert "6 of 6 images are scored already" in again.stdout and len(Green.calls) == 3
    want = steer.reward("test-green")(opened(table(Path("s.csv"))), "x")
    found = [float(r["test-green"]) for r in table(Path("s.csv"))]
    assert found == pytest.approx(want.tolist(), abs=1e-7)  # means over batches of other sizes


def test_the_log_lies_beside_the_table(folder: Path, tmp_path: Path) -> None:
    score(folder, "-p", "x")
    score(folder, "-p", "x", "--json", "a.json")
    score(folder, "-p", "x", "--csv", "b.csv", "--json", "a.json")
    assert {p.name for p in tmp_path.glob("*.jsonl")} == {
        "scores.jsonl",
        "a.scores.jsonl",
        "b.scores.jsonl",
    }
    assert len(Green.calls) == 3


def test_interrupting_and_continuing(folder: Path) -> None:
    words = (folder, "--prompt", "x", "--csv", "s.csv", "--images-per-batch", "2")
    Green.stop_at = 1
    result = score(*words)
    assert result.exit_code == 130 and "2 of 5 images are scored" in result.stdout
    log = Path("s.scores.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0] == {"format": "steer-scores/1"} and len(lines) == 3
    assert len(table(Path("s.csv"))) == 2
    with log.open("a") as file:
        file.write('{"path": "/torn')  # as a crash in the middle of a write leaves it
    Green.stop_at, Green.calls = None, []
    result = score(*words)
    assert result.exit_code == 0 and "2 of 5 images are scored already" in result.stdout
    assert [count for count, _ in Green.calls] == [2, 1]
    assert len(log.read_text().splitlines()) == 6
    want = steer.reward("test-green")(opened(table(Path("s.csv"))), "x")
    found = [float(r["test-green"]) for r in table(Path("s.csv"))]
    assert found == pytest.approx(want.tolist(), abs=1e-7)  # means over batches of other sizes


def test_an_interrupted_first_batch_leaves_no_table(folder: Path) -> None:
    Green.stop_at = 0
    assert score(folder, "-p", "x", "--csv", "s.csv", "--sheet", "s.png").exit_code == 130
    assert not Path("s.csv").exists() and not Path("s.png").exists()


def test_damaged_images_are_told_and_the_rest_is_scored(folder: Path) -> None:
    data = (folder / "1.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.webp").write_bytes(b"")
    Image.fromarray(np.zeros((20, 24), np.int32)).save(folder / "deep.tiff")
    (folder / "link.png").symlink_to("nowhere.png")
    result = score(folder, "--prompt", "x", "--csv", "s.csv")
    assert result.exit_code == 1
    for name in ("cut.png", "text.jpg", "empty.webp", "deep.tiff", "link.png"):
        assert name in result.stderr
    assert "5 of 10 images could not be scored" in result.stderr
    assert len(table(Path("s.csv"))) == 5
    result = score(folder / "text.jpg", "--prompt", "x", "--csv", "none.csv")
    assert result.exit_code == 1 and not Path("none.csv").exists()


def test_scores_that_are_no_numbers(folder: Path) -> None:
    Image.new("RGB", (24, 20)).save(folder / "black.png")
    result = score(folder, "-p", "x", "--csv", "s.csv", reward=["test-nan", "test-green"])
    assert result.exit_code == 1 and "black.png: test-nan gave nan" in result.stderr
    row = next(row for row in table(Path("s.csv")) if row["path"].endswith("black.png"))
    assert row["test-nan"] == "" and float(row["test-green"]) == 0.0
    assert "NaN" not in Path("s.scores.jsonl").read_text()


def test_out_of_memory_says_what_to_do(folder: Path) -> None:
    line = one_line(score(folder, "-p", "x", "--images-per-batch", "4", reward="test-memory"))
    assert "--images-per-batch 4" in line and "smaller" in line


def test_csv_and_json_say_the_same(folder: Path) -> None:
    prompt = 'with "quotes", commas\nand lines — ü'
    result = score(
        folder,
        "-p",
        prompt,
        "--csv",
        "s.csv",
        "--json",
        "s.json",
        reward=["test-green", "test-red"],
    )
    assert result.exit_code == 0
    listed = json.loads(Path("s.json").read_text("utf-8"))
    assert [list(row) for row in listed] == [["path", "prompt", "test-green", "test-red"]] * 5
    for row, cells in zip(listed, table(Path("s.csv")), strict=True):
        assert row == {**cells, **{r: float(cells[r]) for r in ("test-green", "test-red")}}
        assert row["prompt"] == prompt
    for name in ("s.csv", "s.json"):  # the tables are prompt files themselves
        assert read_prompts(Path(name)) == {row["path"]: prompt for row in listed}


def test_the_table_is_sorted_and_has_means(folder: Path) -> None:
    result = score(folder, "-p", "x", "--csv", "s.csv")
    rows = table(Path("s.csv"))
    order = sorted(rows, key=lambda row: -float(row["test-green"]))
    places = [result.stdout.index(f"  {Path(row['path']).name} ") for row in order]
    assert places == sorted(places)
    mean = np.mean([float(row["test-green"]) for row in rows])
    assert f"{mean:.4f}" in result.stdout and "mean of 5 images" in result.stdout


def test_long_tables_are_cut(tmp_path: Path) -> None:
    from rich.console import Console

    from steer.cli.score_table import ranking

    rows = [Row(f"{k}.png", "x" if k else "other", {"r": -float(k), "s": None}) for k in range(100)]
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(ranking(rows, ["r", "s"]))
    text = console.export_text()
    assert "… 64 more" in text and "0.png" in text and "99.png" in text and "50.png" not in text
    assert "−49.5000" in text and "–" in text and "other" in text


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        (["a/b/1.png", "a/b/c/2.png"], ["file in a/b/", " 1.png", " c/2.png"]),
        (["ab/1.png", "ac/2.png"], ["file ", " ab/1.png", " ac/2.png"]),
        (["1.png", "b/2.png"], ["file ", " 1.png", " b/2.png"]),
        (["/1.png", "/b/2.png"], ["file ", " /1.png", " /b/2.png"]),
        (["/x/1.png"], ["file in /x/", " 1.png"]),
    ],
)
def test_paths_are_shown_within_their_folder(paths: list[str], shown: list[str]) -> None:
    from rich.console import Console

    from steer.cli.score_table import ranking

    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(ranking([Row(path, "x", {"r": 0.5}) for path in paths], ["r"]))
    text = console.export_text()
    assert all(part in text for part in shown), text


def test_rows_without_the_score_come_last() -> None:
    rows = [Row(str(k), "", {"r": value}) for k, value in enumerate([None, -1.0, 2.0])]
    assert [row.path for row in rank_rows(rows, "r")] == ["2", "1", "0"]


PROMPTS = {"1.png": "one", "2.png": "two", "3.png": "three", "10.png": "ten", "11.png": "eleven"}
RECORDS = [{"file_name": f"./images/{name}", "text": text} for name, text in PROMPTS.items()]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", json.dumps(PROMPTS)),
        ("p.json", json.dumps(RECORDS)),
        ("p.json", json.dumps(list(PROMPTS.values()))),
        ("p.jsonl", "\n\n".join(map(json.dumps, RECORDS))),
        ("p.csv", "score,path,prompt\n" + "".join(f'1,{k},"{v}"\n' for k, v in PROMPTS.items())),
        ("p.tsv", "﻿image\tcaption\n" + "".join(f"{k}\t{v}\n" for k, v in PROMPTS.items())),
        ("p.txt", "one\ntwo\n\n  three\nten\neleven\n"),
    ],
)
def test_prompts_from_files(folder: Path, name: str, text: str) -> None:
    Path(name).write_text(text, "utf-8")
    result = score(folder, "--prompts-file", name, "--csv", "s.csv", reward="test-length")
    assert result.exit_code == 0, result.output
    for row in table(Path("s.csv")):
        assert row["prompt"] == PROMPTS[Path(row["path"]).name]
        assert float(row["test-length"]) == len(row["prompt"])


def test_prompts_from_stdin(folder: Path) -> None:
    result = score(folder, "--prompts-file", "-", "--csv", "s.csv", input="a\nb\nc\nd\ne\n")
    assert result.exit_code == 0
    assert [row["prompt"] for row in table(Path("s.csv"))] == list("abcde")


def test_the_longest_name_wins(folder: Path) -> None:
    (folder.parent / "other").mkdir()
    noise(1).save(folder.parent / "other" / "1.png")
    table = {"1.png": "any", "other/1.png": "that", str(folder / "2.png"): "two", "nowhere.png": ""}
    Path("p.json").write_text(json.dumps(table))
    images = find_images([folder / "1.png", folder.parent / "other", folder / "2.png"])
    assert by_file(images, Path("p.json")) == (["any", "two", "that"], 1)


def test_images_bring_their_own_prompts(tmp_path: Path) -> None:
    for name, prompt in (("0000-0", "a — circle"), ("0001-0", "b")):
        save_png(tmp_path / f"{name}.png", noise(1), {"prompt": prompt, "seed": 3})
    save_png(tmp_path / "0000-previews.png", noise(2), {})  # a sheet: left out of folders
    result = score(tmp_path, "--csv", "s.csv", reward="test-length")
    assert result.exit_code == 0, result.output
    assert [row["prompt"] for row in table(Path("s.csv"))] == ["a — circle", "b"]
    noise(3).save("plain.png")
    assert "no prompt for 1 of 3 images ('plain.png')" in " ".join(
        one_line(score("plain.png", *sorted(Path().glob("000?-0.png")))).split()
    )


def test_rewards_that_need_no_prompt(folder: Path) -> None:
    assert score(folder, "--csv", "s.csv", reward="test-red").exit_code == 0
    assert {row["prompt"] for row in table(Path("s.csv"))} == {""}
    line = one_line(score(folder, "--csv", "s.csv", reward=["test-red", "test-green"]))
    assert "test-green: no prompt for 5 of 5 images" in line and "--prompts-file" in line


def test_the_contact_sheet(folder: Path) -> None:
    noise(5, 200, 400).save(folder / "wide.jpg")
    words = (folder, "-p", "x", "--sheet", folder / "sheet.png")
    assert score(*words, reward=["test-green", "test-red"]).exit_code == 0
    first = (folder / "sheet.png").read_bytes()
    assert read(folder / "sheet.png") == {}
    assert score(*words, reward=["test-green", "test-red"]).exit_code == 0  # not scored itself
    assert (folder / "sheet.png").read_bytes() == first
    assert len(find_images([folder])) == 6


def test_sheet_order_and_cut(folder: Path) -> None:
    """Pixels of the best image come first; of very many, the first and the last are shown."""
    Image.new("RGB", (224, 224), (255, 0, 0)).save("red.png")
    Image.new("RGB", (224, 224), (0, 0, 255)).save("blue.png")
    rows = [Row("blue.png", "x", {"r": 0.1}), Row("red.png", "x", {"r": -0.2})]
    colours = [c for c in _colours(score_sheet(rows, ["r"])) if c in ((255, 0, 0), (0, 0, 255))]
    assert colours[0] == (0, 0, 255) and set(colours) == {(255, 0, 0), (0, 0, 255)}
    exact, more = (score_sheet(rows[:1] * n, ["r"]).size for n in (MAX_CELLS, MAX_CELLS + 50))
    assert exact == more
    with pytest.raises(ValueError, match="nothing to show"):
        from steer.pipeline.report.sheet import contact_sheet

        contact_sheet([], "none")


def _colours(sheet: Image.Image) -> list[tuple[int, ...]]:
    middle = sheet.height // 2
    return [sheet.getpixel((x, middle)) for x in range(sheet.width)]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("words", "reward", "told"),
    [
        (["nowhere"], "test-green", "'nowhere': does not exist"),
        (["empty"], "test-green", "no images found in this folder"),
        (["notes.txt"], "test-green", "not an image by its name"),
        (["images"], "test-grene", "did you mean 'test-green'"),
        (["images"], " ", "name at least one"),
        (["images"], "shapes,test-green", "--reward shapes --reward test-green"),
        (["images"], "test-red=x,test-green=0.3", "not name=weight"),
        (["images"], "rank(test-red,test-green)", "compares the images of one call"),
        (["images"], "prompt", "column of this name"),
        (["images", "--prompts-file", "notes.txt"], "test-green", "give one of them, not both"),
        (["images", "--images-per-batch", "0"], "test-green", "images_per_batch=0"),
        (["images", "--csv", "s.txt"], "test-green", "ends in .csv"),
        (["images", "--json", "no/s.json"], "test-green", "no folder 'no'"),
        (["images", "--sheet", "s.jpg"], "test-green", "ends in .png"),
        (["images", "--device", "abacus"], "test-green", "device='abacus'"),
        (["images", "--dtype", "int8"], "shapes", "dtype='int8'"),
        (["images", "--checkpoint", "x.pt"], "test-green", "write REWARD=PATH"),
        (["images", "--checkpoint", "test-green=x.pt"], "test-green", "'x.pt' does not exist"),
        (["images", "--checkpoint", "shapes=empty"], "shapes", "open_clip_config.json"),
    ],
)
def test_bad_input(folder: Path, words: list[str], reward: str, told: str) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("a\nb")
    assert told in one_line(score(*words, "--prompt", "x", reward=reward))
    assert not Path("scores.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.txt", "a\nb", "2 prompts for 5 images"),
        ("p.json", '["a", "b"]', "2 prompts for 5 images"),
        ("p.json", '{"1.png": "a"}', "no prompt for 4 of 5 images"),
        ("p.json", '{"1.png": 3}', "is not a string"),
        ("p.json", '{"1.png": "a", "1.png": "b"}', "stands there twice"),
        ("p.json", "{", "p.json"),
        ("p.json", "3", "neither a list nor an object"),
        ("p.jsonl", '{"path": "1.png"}', "row 1 lacks"),
        ("p.csv", "name,words\n1.png,a\n", "row 1 lacks"),
        ("p.csv", "path,prompt\n1.png\n", "row 1 has 1 cells, and the header 2"),
        ("missing.csv", None, "No such file"),
    ],
)
def test_bad_prompt_files(folder: Path, name: str, text: str | None, told: str) -> None:
    if text is not None:
        Path(name).write_text(text)
    line = one_line(score(folder, "--prompts-file", name))
    assert f"prompts_file={name!r}" in line and told in line


@pytest.mark.parametrize("text", ["notes\n", '{"format": "other"}\n', "[]\n", "unfinished"])
def test_a_file_that_is_no_log_is_left_alone(folder: Path, text: str) -> None:
    Path("s.scores.jsonl").write_text(text)
    assert "is not a steer-scores/1 file" in one_line(score(folder, "-p", "x", "--csv", "s.csv"))
    assert Path("s.scores.jsonl").read_text() == text


def test_other_weights_and_precisions_are_other_scores(folder: Path) -> None:
    copy = Path("weights")
    copy.mkdir()
    for file in (steer.shapes.weights_folder() / "scorer").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    words = (folder, "-p", "a red circle", "--csv", "s.csv")
    log = Path("s.scores.jsonl")
    more = ([], ["--checkpoint", f"shapes={copy}"], ["--dtype", "bfloat16"], [])
    sizes = []
    for options in more:
        assert score(*words, *options, reward="shapes").exit_code == 0
        sizes.append(len(log.read_text().splitlines()))
    assert sizes == [6, 11, 16, 16]
    (copy / "note").write_text("changed")
    score(*words, *more[1], reward="shapes")
    assert len(log.read_text().splitlines()) == 21


keys = st.builds(Key, *(st.text(max_size=8) for _ in Key._fields))
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.dictionaries(keys, finite, max_size=3), max_size=4), st.integers(0, 400))
def test_a_log_cut_anywhere_is_a_shorter_log(
    tmp_path_factory: pytest.TempPathFactory, parts: list[dict[Key, float]], cut: int
) -> None:
    """Whatever byte a crash stops at, what was written before is read, and appending goes on."""
    path = tmp_path_factory.mktemp("log") / "s.jsonl"
    log = ScoreLog(path)
    with log.appending():
        for part in parts:
            log.add(part)
    written = path.read_bytes()
    path.write_bytes(written[:cut])
    again = ScoreLog(path)
    assert len(again) <= len(log)
    merged = {key: value for part in parts for key, value in part.items()}
    lines = max(written[:cut].count(b"\n") - 1, 0)
    seen = [item for part in parts for item in part.items()][:lines]
    assert all(again.get(key) == value for key, value in dict(seen).items())
    with again.appending():
        again.add(merged)
    assert all(ScoreLog(path).get(key) == value for key, value in merged.items())


def test_each_file_once(folder: Path, tmp_path: Path) -> None:
    (folder / ".hidden.png").write_bytes(b"")
    (folder / ".cache").mkdir()
    noise(1).save(folder / ".cache" / "1.png")
    found = find_images([folder, folder / "1.png", folder.parent / "images" / ".." / "images"])
    assert [Path(image.path).name for image in found] == [f"{n}.png" for n in (1, 2, 3, 10, 11)]


def test_batches_keep_the_order() -> None:
    sizes = [(1, 1), (2, 1), (1, 1), (2, 1), (1, 1)]
    tasks = [scoring.Task(str(k), size, "", ("r",)) for k, size in enumerate(sizes)]
    found = [[task.path for task in batch.tasks] for batch in scoring.batches(tasks, 2)]
    assert found == [["0", "2"], ["4"], ["1", "3"]]


def test_odd_file_names(tmp_path: Path) -> None:
    rows = [Row("caf\udce9.png", "x", {"r": 1.0})]
    write_csv(tmp_path / "s.csv", rows, ["r"])
    write_json_rows(tmp_path / "s.json", rows, ["r"])
    assert b"caf\xe9.png" in (tmp_path / "s.csv").read_bytes()
    assert b"caf\xe9.png" in (tmp_path / "s.json").read_bytes()


def test_a_mixture_is_a_reward_as_everywhere(folder: Path) -> None:
    mixture = "test-red=0.5,test-green=0.25"
    words = (folder, "--prompt", "x", "--csv", "s.csv")
    result = score(*words, reward=["test-red", "test-green", mixture])
    assert result.exit_code == 0, result.output
    for row in table(Path("s.csv")):
        want = 0.5 * float(row["test-red"]) + 0.25 * float(row["test-green"])
        assert float(row[mixture]) == pytest.approx(want, abs=1e-6)
