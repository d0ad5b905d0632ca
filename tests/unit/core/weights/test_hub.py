"""The table of published files, and how they are fetched."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import pytest
import torch

from steer.core.errors import CheckpointError
from steer.core.weights import hub
from steer.core.weights.hub import FILES, HubFile, fetch, locate


def test_the_table_is_pinned_and_plain():
    for key, file in FILES.items():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", file.repository), key
        assert file.revision == "main" or re.fullmatch(r"[0-9a-f]{40}", file.revision), key
        assert file.filename.rpartition(".")[2] in {
            "pt",
            "pth",
            "bin",
            "safetensors",
            "json",
            "txt",
        }
        assert file.licence and file.host in {"huggingface.co", "github.com"}, key
        assert file.host == "huggingface.co" or file.sha256, key


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "size unknown"), (1_972_490_005, "1.97 GB"), (3_714_759, "3.71 MB"), (4071, "4 kB")],
)
def test_sizes_for_people(size, text):
    assert replace(FILES["hpsv2.1"], size_bytes=size).size == text


def test_hub_files_go_through_the_hubs_client(monkeypatch):
    asked = []

    def download(*where, revision):
        asked.append((*where, revision))
        return "path"

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert fetch("hpsv2.1") == "path"
    assert fetch("hpsv2.1", revision="main") == "path"
    file = FILES["hpsv2.1"]
    name = (file.repository, file.filename)
    assert asked == [(*name, file.revision), (*name, "main")]


def test_unknown_key():
    with pytest.raises(ValueError, match=r"key='hpsv9': one of 'hpsv2\.0'"):
        fetch("hpsv9")


def test_a_local_path_is_taken_as_it_is(tmp_path):
    path = tmp_path / "a.pt"
    path.touch()
    assert locate("hpsv2.1", path) == str(path)
    with pytest.raises(
        CheckpointError, match=r"tower='.*gone\.pt' does not exist: .*tower='\.\.\./"
    ):
        locate("hpsv2.1", tmp_path / "gone.pt", option="tower")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file on a "server", in the table, and an empty cache."""
    served = tmp_path / "served.pth"
    served.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    file = HubFile("a/b", "sub/head+1.pth", "0" * 40, 7, "MIT", host="github.com", sha256=digest)
    monkeypatch.setitem(FILES, "test", file)
    monkeypatch.setattr(HubFile, "url", lambda self, revision=None: served.as_uri())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    return served


def test_github_files_are_kept_by_repository_and_revision(published, tmp_path):
    expected = tmp_path / "cache/steer/a/b" / ("0" * 40) / "sub/head+1.pth"
    assert fetch("test") == str(expected)
    assert expected.read_bytes() == b"weights"
    published.unlink()
    assert fetch("test") == str(expected)  # from the cache
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        fetch("test", revision="main")


def test_github_files_are_checked(published, tmp_path):
    published.write_bytes(b"another")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        fetch("test")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_github_files_offline(published, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as error:
        fetch("test", option="head")
    for part in (
        "HF_HUB_OFFLINE is set",
        "curl -L -o 'head+1.pth' 'file:",
        "7 B",
        "head='.../head",
    ):
        assert part in str(error.value)


def test_urls():
    file = FILES["aesthetic"]
    start = f"https://raw.githubusercontent.com/{file.repository}/{file.revision}/sac%2Blogos%2B"
    assert file.url().startswith(start)
    assert FILES["hpsv2.1"].url("main").endswith("xswu/HPSv2/resolve/main/HPS_v2.1_compressed.pt")
