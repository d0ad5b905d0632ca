"""The folder: whole files or none, digests, changed configurations, full disks."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from steer.core.errors import FolderError
from steer.core.files import png
from steer.jobs.compare.store import SETUP, Store, Unit, differences, unseal


UNIT = Unit("base", 12, 3)
SETUP_DATA = {"steps": 20, "arms": [{"name": "base"}, {"name": "b", "compute": 2.0}]}


def image(value: int = 9) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), value, np.uint8))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "out")
    made.begin(SETUP_DATA, ["base", "b"])
    return made


def test_an_image_and_its_record(store: Store) -> None:
    assert store.record(UNIT) is None
    store.put(UNIT, image(), {"prompt": "x", "seed": 3}, {"ledger": {"decodes": 1}})
    found = store.record(UNIT)
    assert found is not None and found["ledger"] == {"decodes": 1}
    assert store.image(UNIT).name == "00012-s3.png"
    assert png.read(store.image(UNIT))["seed"] == 3


def test_damage_counts_as_missing(store: Store) -> None:
    store.put(UNIT, image(), {}, {})
    whole = store.image(UNIT).read_bytes()
    store.image(UNIT).write_bytes(whole[:-9])
    assert store.record(UNIT) is None
    store.image(UNIT).write_bytes(whole)
    assert store.record(UNIT) is not None
    path = store.folder / "records" / "base" / "00012-s3.json"
    path.write_text(path.read_text()[:-20])
    assert store.record(UNIT) is None
    path.write_text("")
    assert store.record(UNIT) is None


def test_an_edited_record_counts_as_missing(store: Store) -> None:
    store.put(UNIT, image(), {}, {"reward": 1.0})
    path = store.folder / "records" / "base" / "00012-s3.json"
    path.write_text(path.read_text().replace("1.0", "2.0"))
    assert store.record(UNIT) is None


def test_scores_belong_to_their_images(store: Store) -> None:
    store.put_scores("hpsv2", "base", 0, {"images": ["aa"], "scores": [0.5]})
    assert store.scores("hpsv2", "base", 0, ["aa"]) == {"images": ["aa"], "scores": [0.5]}
    assert store.scores("hpsv2", "base", 0, ["bb"]) is None
    assert store.scores("hpsv2", "base", 1, ["aa"]) is None


def test_the_same_comparison_continues(store: Store) -> None:
    (store.folder / "images" / "base" / ".torn.png.x.tmp").write_bytes(b"half")
    store.begin(SETUP_DATA, ["base", "b"])
    assert not list(store.folder.rglob("*.tmp"))


def test_a_changed_comparison_is_refused(store: Store) -> None:
    changed = {"steps": 30, "arms": [{"name": "base"}, {"name": "b", "compute": 4.0}]}
    with pytest.raises(FolderError) as error:
        store.begin(changed, ["base", "b"])
    assert "steps was 20, now 30" in str(error.value)
    assert "arms[1].compute was 2.0, now 4.0" in str(error.value)
    assert "name another folder" in str(error.value)


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(FolderError, match="holds files"):
        Store(tmp_path).begin(SETUP_DATA, ["base"])
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(FolderError, match="not a folder"):
        Store(file).begin(SETUP_DATA, ["base"])
    (tmp_path / SETUP).write_text(json.dumps({"format": "other"}))
    with pytest.raises(FolderError, match="damaged or of another format"):
        Store(tmp_path).begin(SETUP_DATA, ["base"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_tears_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store.put(UNIT, image(1), {}, {"reward": 1.0})
    before = store.image(UNIT).read_bytes()
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        real(path, data[: len(data) // 2])
        raise OSError(code, "No room")

    monkeypatch.setattr(Path, "write_bytes", full)
    said = "cannot be written" if code == errno.EIO else "the disk is full"
    with pytest.raises(FolderError, match=f"{said}.*what is finished stays valid"):
        store.put(UNIT, image(2), {}, {"reward": 2.0})
    monkeypatch.undo()
    assert store.image(UNIT).read_bytes() == before
    assert (store.record(UNIT) or {})["reward"] == 1.0
    assert not list(store.folder.rglob("*.tmp"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(JSON, JSON)
def test_differences_are_found_exactly(a: Any, b: Any) -> None:
    assert not list(differences(a, a))
    gone = json.dumps(_without_none(a), sort_keys=True) == json.dumps(
        _without_none(b), sort_keys=True
    )
    if a != b and not gone:
        assert list(differences({"x": a}, {"x": b}))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


def test_unsealed_of_nothing(tmp_path: Path) -> None:
    assert unseal(tmp_path / "none.json") is None
