"""Published files: kept where the docs say, checked, and never half of one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from steer.core.errors import CheckpointError, PromptsError
from steer.core.files.published import PublishedFile, fetch


COMMIT = "0" * 40
FILE = PublishedFile(
    "a/b",
    "sub/head+1.pth",
    COMMIT,
    7,
    "MIT",
    "github.com",
    hashlib.sha256(b"weights").hexdigest(),
)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`FILE` on a "server", and an empty cache."""
    served = tmp_path / "served.pth"
    served.write_bytes(b"weights")
    monkeypatch.setattr(PublishedFile, "url", lambda self, revision=None: served.as_uri())
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return served


def kept(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "size unknown"),
        (1_972_490_005, "1.97 GB"),
        (3_714_759, "3.71 MB"),
        (4071, "4 kB"),
        (7, "7 B"),
    ],
)
def test_sizes_for_people(size: int | None, text: str) -> None:
    assert replace(FILE, size_bytes=size).size == text


def test_urls() -> None:
    assert FILE.url() == f"https://raw.githubusercontent.com/a/b/{COMMIT}/sub/head%2B1.pth"
    model = replace(FILE, host="huggingface.co")
    assert model.url("main") == "https://huggingface.co/a/b/resolve/main/sub/head%2B1.pth"
    page = "https://huggingface.co/datasets/a/b"
    assert replace(model, dataset=True).url() == f"{page}/resolve/{COMMIT}/sub/head%2B1.pth"


def test_kept_below_hf_home_by_repository_and_revision(served: Path, tmp_path: Path) -> None:
    expected = tmp_path / "cache" / "steer" / "a" / "b" / COMMIT / "sub" / "head+1.pth"
    assert fetch(FILE, "test", CheckpointError) == expected
    assert expected.read_bytes() == b"weights"
    served.unlink()
    assert fetch(FILE, "test", CheckpointError) == expected  # from the cache
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        fetch(FILE, "test", CheckpointError, revision="main")
    assert kept(tmp_path) == [expected]


def test_another_file_gets_no_name(served: Path, tmp_path: Path) -> None:
    served.write_bytes(b"another")
    with pytest.raises(PromptsError, match=r"^prompts: .*cannot be downloaded .*invalid hash"):
        fetch(FILE, "prompts", PromptsError)
    assert not kept(tmp_path)
    assert fetch(FILE, "test", CheckpointError, revision="main").read_bytes() == b"another"


def test_a_kept_file_that_changed_is_refused(served: Path) -> None:
    path = fetch(FILE, "test", CheckpointError)
    path.write_bytes(b"changed")
    with pytest.raises(CheckpointError, match=r"not the published file: .* delete it and run"):
        fetch(FILE, "test", CheckpointError)


def test_interrupted_downloads_leave_nothing(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.hub.shutil.move", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch(FILE, "test", CheckpointError)
    assert not kept(tmp_path)


def test_offline_says_how_to_bring_it(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as error:
        fetch(FILE, "test", CheckpointError, option="head")
    for part in (
        "HF_HUB_OFFLINE is set",
        "curl -L -o 'head+1.pth' 'file:",
        "https://github.com/a/b, 7 B",
        "pass head='.../head+1.pth', or copy it to ",
    ):
        assert part in str(error.value)


def test_datasets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(*where: str, **options: str) -> str:
        asked.append((*where, options))
        raise ConnectionError("no network.\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    file = replace(FILE, host="huggingface.co", dataset=True, filename="a b.csv")
    way = rf"hf download --repo-type dataset a/b 'a b\.csv' --revision {COMMIT}`.*copy the cache"
    with pytest.raises(PromptsError, match=rf"\(ConnectionError: no network\).*{way}"):
        fetch(file, "prompts", PromptsError)
    assert asked == [("a/b", "a b.csv", {"revision": COMMIT, "repo_type": "dataset"})]
