"""A run's records and PNG metadata: round trips, validity at every moment, clear errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from steer.core.errors import RecordError
from steer.core.files.atomic import plain, write_json
from steer.core.files.png import read, save_png
from steer.core.files.run_folder import LOG_FILE, RUN_FILE, RunFolder
from steer.core.files.versions import versions


ARGUMENTS = {"prompts": ["a red circle", "two blue squares"], "seed": 0, "compute": 4.0}


def picture(size: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8))


def entry(run: RunFolder, index: int) -> dict[str, object]:
    save_png(run.folder / f"{index}.png", picture(), {"prompt": f"prompt {index}"})
    return {"index": index, "images": [f"{index}.png"]}


def new_run(folder: Path) -> RunFolder:
    return RunFolder.create(folder, ARGUMENTS, kind="sample", command="steer sample x")


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_png_metadata_round_trip(tmp_path_factory: pytest.TempPathFactory, data: dict) -> None:
    path = tmp_path_factory.mktemp("png") / "image.png"
    save_png(path, picture(), data)
    assert read(path) == plain(data)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), np.asarray(picture()))


def test_png_carries_a_description(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", picture(), {"prompt": "un café ✓", "seed": 3})
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Description"] == "un café ✓"
        assert image.info["Software"].startswith("steer")


def test_read_names_what_is_wrong(tmp_path: Path) -> None:
    picture().save(tmp_path / "bare.png")
    with pytest.raises(RecordError, match=r"bare\.png.*no reproduction data"):
        read(tmp_path / "bare.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(RecordError, match="not a readable image"):
        read(tmp_path / "text.png")
    with pytest.raises(RecordError, match="not a readable image"):
        read(tmp_path / "missing.png")


def test_plain_makes_json_of_anything() -> None:
    value = {
        "a": (1, float("nan")),
        2: np.float32(0.5),
        "b": np.arange(3),
        "c": Path("x"),
        "d": float("inf"),
    }
    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text) == {
        "a": [1, None],
        "2": 0.5,
        "b": [0, 1, 2],
        "c": "PosixPath('x')",
        "d": None,
    }


def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"old": True})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"old": False})
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_run_json_is_valid_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written whole at the beginning and the end, and not once a prompt."""
    seen: list[tuple[str, int]] = []
    real = os.replace

    def watch(source: str, target: Path) -> None:
        real(source, target)
        if Path(target).name == RUN_FILE:
            data = json.loads(Path(target).read_text())
            seen.append((data["status"], len(data["prompts"])))

    monkeypatch.setattr(os, "replace", watch)
    run = new_run(tmp_path)
    for index in (1, 0):
        run.add(entry(run, index))
    assert [e["index"] for e in RunFolder.load(tmp_path).entries] == [0, 1]
    run.close("finished")
    assert seen == [("running", 0), ("finished", 2)]
    assert [e["index"] for e in RunFolder.load(tmp_path).entries] == [0, 1]
    assert not (tmp_path / LOG_FILE).exists()


def test_a_prompt_costs_the_same_however_many_there_are(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, {"prompts": ["a"] * 16}, kind="sample", command="")
    sizes = []
    for index in range(10, 16):
        run.add({**entry(run, 0), "index": index})
        sizes.append((tmp_path / LOG_FILE).stat().st_size)
    assert len(set(np.diff(sizes))) == 1
    assert json.loads((tmp_path / RUN_FILE).read_text())["prompts"] == []


def test_killed_at_any_byte(tmp_path: Path) -> None:
    """Whatever a kill leaves of the log: entries before the torn one count, and it continues."""
    run = new_run(tmp_path)
    run.add({**entry(run, 0), "method": "BestOfN(n=2)"})
    first = len((tmp_path / LOG_FILE).read_bytes())
    run.add(entry(run, 1))
    whole = (tmp_path / LOG_FILE).read_bytes()
    for kept in range(len(whole) + 1):
        (tmp_path / LOG_FILE).write_bytes(whole[:kept])
        found = RunFolder.load(tmp_path)
        there = [0, 1] if kept == len(whole) else [0] if kept >= first else []
        assert [e["index"] for e in found.entries] == there
        assert found.data["configuration"] == ({"method": "BestOfN(n=2)"} if there else {})
    run = RunFolder.load(tmp_path)
    run.close("running")
    assert RunFolder.load(tmp_path).entries == run.entries and run.status == "running"


def test_killed_between_the_two_files_of_an_end(tmp_path: Path) -> None:
    """`run.json` is there with all entries, and the log still: the same entries."""
    run = new_run(tmp_path)
    run.add(entry(run, 0))
    log = (tmp_path / LOG_FILE).read_bytes()
    run.close("interrupted")
    (tmp_path / LOG_FILE).write_bytes(log)
    again = RunFolder.load(tmp_path)
    assert again.entries == run.entries and again.status == "interrupted"


def test_a_folder_without_a_log_continues(tmp_path: Path) -> None:
    """As 0.1.0's first folders are: entries in `run.json`, which says that it is running."""
    run = new_run(tmp_path)
    run.add(entry(run, 1))
    run.close("running")
    again = RunFolder.load(tmp_path)
    assert again.missing() == [0]
    again.add(entry(again, 0))
    assert [e["index"] for e in RunFolder.load(tmp_path).entries] == [0, 1]


def test_a_new_run_forgets_the_log_of_an_earlier_one(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.add(entry(run, 0))
    (tmp_path / RUN_FILE).unlink()
    new_run(tmp_path)
    assert RunFolder.load(tmp_path).missing() == [0, 1]


@pytest.mark.parametrize("line", ["{", "3", '{"index": "0", "images": []}', '{"index": 0}'])
def test_a_damaged_log_is_told_and_has_a_way_out(tmp_path: Path, line: str) -> None:
    run = new_run(tmp_path)
    run.add(entry(run, 0))
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RecordError, match=r"run\.jsonl.*to draw its prompts again"):
        RunFolder.load(tmp_path)
    (tmp_path / LOG_FILE).unlink()
    assert RunFolder.load(tmp_path).missing() == [0, 1]


def test_missing_prompts_and_lost_images(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert run.missing() == [0, 1]
    run.add(entry(run, 1))
    assert RunFolder.load(tmp_path).missing() == [0]
    (tmp_path / "1.png").unlink()
    assert RunFolder.load(tmp_path).missing() == [0, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, r"--seed was 0, now 1"),
        ({"prompts": ["other"]}, r"prompts was \['a red circle'"),
        ({"images_per_prompt": 2}, r"--images-per-prompt was None, now 2"),
    ],
)
def test_other_arguments_are_named(tmp_path: Path, change: dict, words: str) -> None:
    run = new_run(tmp_path)
    run.check({**ARGUMENTS, "prompts": tuple(ARGUMENTS["prompts"])})
    with pytest.raises(RecordError, match=words):
        run.check({**ARGUMENTS, **change})


def test_load_errors(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such folder"):
        RunFolder.load(tmp_path / "nowhere")
    with pytest.raises(RecordError, match=r"holds no run\.json"):
        RunFolder.load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RecordError, match="cannot be read"):
        RunFolder.load(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RecordError, match="not a steer-run/1 file"):
        RunFolder.load(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="not a folder that can be read and written"):
        new_run(tmp_path / "file")


def test_versions_name_the_libraries() -> None:
    assert {"python", "steer", "torch", "diffusers"} <= set(versions())
