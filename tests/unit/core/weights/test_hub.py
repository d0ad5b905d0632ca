"""The table of published files, and how they are fetched."""

from __future__ import annotations

import re

import pytest

from steer.core.errors import CheckpointError
from steer.core.weights.hub import FILES, fetch, locate


def test_the_table_is_pinned_and_plain():
    for key, file in FILES.items():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", file.repository), key
        pinned = r"v\d+\.\d+\.\d+" if file.release else r"[0-9a-f]{40}"
        assert file.revision == "main" or re.fullmatch(pinned, file.revision), key
        assert file.filename.rpartition(".")[2] in {
            "pt",
            "pth",
            "bin",
            "safetensors",
            "json",
            "txt",
        }
        assert file.licence and file.host in {"huggingface.co", "github.com"}, key
        assert file.host == "huggingface.co" or file.release or file.sha256, key


def test_hub_files_go_through_the_hubs_client(monkeypatch):
    asked = []

    def download(*where, revision, repo_type):
        asked.append((*where, revision))
        return "path"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
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


def test_urls():
    asset = FILES["cyclereward:t2i"].url()
    release = "https://github.com/hjbahng/cyclereward/releases/download/v1.0.0/"
    assert asset == f"{release}CycleReward-T2I.pth"
    file = FILES["aesthetic"]
    start = f"https://raw.githubusercontent.com/{file.repository}/{file.revision}/sac%2Blogos%2B"
    assert file.url().startswith(start)
    assert FILES["hpsv2.1"].url("main").endswith("xswu/HPSv2/resolve/main/HPS_v2.1_compressed.pt")
