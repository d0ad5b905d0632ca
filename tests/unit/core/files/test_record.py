"""run.json and PNG metadata: round trips, validity at every moment, clear errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from steer.core.errors import RecordError
from steer.core.files import atomic, png, record, versions
from steer.core.files.record import Run


ARGUMENTS = {"prompts": ["a red circle", "two blue squares"], "seed": 0, "compute": 4.0}


def picture(size: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8))


def entry(run: Run, index: int) -> dict[str, object]:
    png.save_png(run.folder / f"{index}.png", picture(), {"prompt": f"prompt {index}"})
    return {"index": index, "images": [f"{index}.png"]}


def new_run(folder: Path) -> Run:
    return Run.create(folder, ARGUMENTS, kind="sample", command="steer sample x")


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
    png.save_png(path, picture(), data)
    assert png.read(path) == atomic.plain(data)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), np.asarray(picture()))


def test_png_carries_a_description(tmp_path: Path) -> None:
    png.save_png(tmp_path / "a.png", picture(), {"prompt": "un café ✓", "seed": 3})
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Description"] == "un café ✓"
        assert image.info["Software"].startswith("steer")


def test_read_names_what_is_wrong(tmp_path: Path) -> None:
    picture().save(tmp_path / "bare.png")
    with pytest.raises(RecordError, match=r"bare\.png.*no reproduction data"):
        png.read(tmp_path / "bare.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(RecordError, match="not a readable image"):
        png.read(tmp_path / "text.png")
    with pytest.raises(RecordError, match="not a readable image"):
        png.read(tmp_path / "missing.png")


def test_plain_makes_json_of_anything() -> None:
    value = {
        "a": (1, float("nan")),
        2: np.float32(0.5),
        "b": np.arange(3),
        "c": Path("x"),
        "d": float("inf"),
    }
    text = json.dumps(atomic.plain(value), allow_nan=False)
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
    atomic.write_json(path, {"old": True})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_json(path, {"old": False})
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_run_json_is_valid_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rename sees a whole file before and after, and nothing writes in another way."""
    seen: list[tuple[str, int]] = []
    real = os.replace

    def watch(source: str, target: Path) -> None:
        real(source, target)
        if Path(target).name == record.RUN_FILE:
            data = json.loads(Path(target).read_text())
            seen.append((data["status"], len(data["prompts"])))

    monkeypatch.setattr(os, "replace", watch)
    run = new_run(tmp_path)
    for index in (1, 0):
        run.add(entry(run, index))
    run.close("finished")
    assert seen == [("running", 0), ("running", 1), ("running", 2), ("finished", 2)]
    assert [e["index"] for e in Run.load(tmp_path).entries] == [0, 1]


def test_missing_prompts_and_lost_images(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert run.missing() == [0, 1]
    run.add(entry(run, 1))
    assert Run.load(tmp_path).missing() == [0]
    (tmp_path / "1.png").unlink()
    assert Run.load(tmp_path).missing() == [0, 1]


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
        Run.load(tmp_path / "nowhere")
    with pytest.raises(RecordError, match=r"holds no run\.json"):
        Run.load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RecordError, match="cannot be read"):
        Run.load(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RecordError, match="not a steer-run/1 file"):
        Run.load(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="not a folder that can be read and written"):
        new_run(tmp_path / "file")


def test_versions_name_the_libraries() -> None:
    assert {"python", "steer", "torch", "diffusers"} <= set(versions.versions())
