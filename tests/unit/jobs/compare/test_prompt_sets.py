"""Prompt sets: files, lists, shapes, and published sets read from a cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steer.core.errors import PromptsError
from steer.core.files.published import PublishedFile
from steer.jobs.compare import prompt_files, published_sets
from steer.jobs.compare.prompt_files import fetch
from steer.jobs.compare.prompt_sets import load_prompts


def test_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\ufeffa red circle \r\ntwo blue squares\n\n", encoding="utf-8")
    found = load_prompts(str(file))
    assert found.texts == ["a red circle", "two blue squares"] and found.categories == []
    assert load_prompts({"set": str(file), "limit": 1}).texts == ["a red circle"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no prompts"),
        ("\n \n", "no prompts"),
        ("a\n\nb\n", "line 2 is ''"),
        ("a\nb\na\n", "line 3 repeats line 1"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(PromptsError, match=said):
        load_prompts(str(file))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ([], "no prompts"),
        (["a", " "], "entry 2 is ''"),
        (["a", "a "], "entry 2 repeats entry 1"),
        (["a", 3], "entry 2 is 3"),
        ("hpsv3", "did you mean 'hpsv2'"),
        ("no/such.txt", "neither a file nor a set"),
        ({"set": "shapes", "count": 3}, "'count' is unknown"),
        ({"limit": 3}, "name the set"),
        ({"set": "shapes", "limit": 0}, "limit=0"),
        ({"set": "shapes", "split": "test"}, "split='test'"),
        ({"set": "shapes", "categories": ["x"]}, "no option of 'shapes'"),
        (7, "a set .*a text file, or a list"),
    ],
)
def test_refused(spec: Any, said: str) -> None:
    with pytest.raises(PromptsError, match=said):
        load_prompts(spec)


def test_shapes() -> None:
    from steer.shapes import parse

    found = load_prompts({"set": "shapes", "limit": 12, "seed": 1})
    assert len(found.texts) == len(set(found.texts)) == 12
    assert all(parse(text) for text in found.texts)
    assert found.sha256 == load_prompts({"set": "shapes", "limit": 12, "seed": 1}).sha256
    assert found.sha256 != load_prompts({"set": "shapes", "limit": 12, "seed": 2}).sha256


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def put(file: PublishedFile, text: str) -> PublishedFile:
    """Place `text` in the cache as that file; the file with its digest."""
    path = file.cache_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return replace(file, sha256=hashlib.sha256(text.encode()).hexdigest(), host="github.com")


def test_every_pin_is_complete() -> None:
    files = [*prompt_files.HPSV2.values(), *prompt_files.COMPBENCH.values()]
    files += [prompt_files.PARTI, prompt_files.GENEVAL, prompt_files.DRAWBENCH]
    assert all(len(file.revision) == 40 for file in files)
    unknown = [file.repository for file in files if file.sha256 is None]
    assert unknown == ["sayakpaul/drawbench"]
    assert all(len(f.sha256) == 64 and int(f.sha256, 16) for f in files if f.sha256)


@pytest.mark.parametrize("name", ["parti", "geneval", "compbench:color"])
def test_offline_says_what_to_do(cache: Path, name: str) -> None:
    with pytest.raises(PromptsError, match=r"HF_HUB_OFFLINE.*curl -L -o .* copy it to "):
        load_prompts(name)


def test_hub_offline_says_what_to_do() -> None:
    with pytest.raises(PromptsError, match="hf download --repo-type dataset zhwang/HPDv2"):
        fetch(replace(prompt_files.HPSV2["photo"], revision="0" * 40))


def test_another_file_is_refused(cache: Path) -> None:
    put(prompt_files.GENEVAL, "{}\n")
    with pytest.raises(PromptsError, match=r"not the published file.*the pinned one 5c48e08"):
        fetch(prompt_files.GENEVAL)


def test_an_unknown_digest_is_recorded_and_kept(cache: Path) -> None:
    file = replace(put(prompt_files.DRAWBENCH, "Prompts,Category\n"), sha256=None)
    assert fetch(file) == fetch(file) == b"Prompts,Category\n"
    file.cache_path().write_text("something else\n")
    with pytest.raises(PromptsError, match="recorded at the first download"):
        fetch(file)


def test_published_layouts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The publishers' file formats, with texts of our own in them."""
    styles = ("anime", "concept-art", "paintings", "photo")
    hps = {
        style: put(
            prompt_files.HPSV2[style], json.dumps([f"{style} {k % 799}" for k in range(800)])
        )
        for style in styles
    }
    monkeypatch.setattr(published_sets, "HPSV2", hps)
    found = load_prompts("hpsv2")
    assert len(found.texts) == 3200 and found.categories == list(styles)  # duplicates kept
    some = load_prompts({"set": "hpsv2", "limit": 5, "categories": ["photo", "anime"]})
    assert some.texts == [f"{s} {k}" for s in ("anime", "photo") for k in range(5)]
    with pytest.raises(PromptsError, match="did you mean 'photo'"):
        load_prompts("hpsv2:phto")

    rows = "".join(f'a "sign" {k}\tArts\tBasic\t\n' for k in range(1632))
    table = put(prompt_files.PARTI, "Prompt\tCategory\tChallenge\tNote\n" + rows)
    monkeypatch.setattr(published_sets, "PARTI", table)
    assert load_prompts("parti").texts[0] == 'a "sign" 0'

    rows = "".join(
        json.dumps({"tag": "counting", "prompt": f"{k} cows"}) + "\n" for k in range(553)
    )
    monkeypatch.setattr(published_sets, "GENEVAL", put(prompt_files.GENEVAL, rows))
    assert load_prompts("geneval").prompts[7].category == "counting"

    rows = "Prompts,Category\n" + "".join(f'"a cat, {k}",Colors\n' for k in range(200))
    monkeypatch.setattr(published_sets, "DRAWBENCH", put(prompt_files.DRAWBENCH, rows))
    assert load_prompts("drawbench").texts[3] == "a cat, 3"

    color = put(prompt_files.COMPBENCH["color"], "".join(f"a red cup {k}\r\n" for k in range(300)))
    monkeypatch.setattr(published_sets, "COMPBENCH", {"color": color})
    assert load_prompts("compbench:color").texts[299] == "a red cup 299"


def test_a_short_published_file_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        published_sets, "GENEVAL", put(prompt_files.GENEVAL, '{"tag": "x", "prompt": "y"}\n')
    )
    with pytest.raises(PromptsError, match="holds 1 texts, expected 553"):
        load_prompts("geneval")
