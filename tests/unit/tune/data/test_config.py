"""Settings, prompts and shared checks: what is read and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steer.core.errors import TuneError
from steer.core.seeds import text_seed
from steer.tune.checks import check_enough, check_scores, check_unchanged, histogram
from steer.tune.data.config import DataConfig
from steer.tune.data.prompts import Prompt, read_prompts
from steer.tune.data.sampling import plan, splits


def test_a_file_is_read_with_its_parts(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "out: here\nprompts: [a, b]\nrewards: shapes\npairs: {margin: 0.1, per_prompt: 2}\n"
    )
    config = DataConfig.load(tmp_path / "c.yaml", device="cpu", out=None)
    assert config.rewards == ("shapes",) and config.device == "cpu" and config.out == "here"
    assert config.pairs is not None and config.pairs.per_prompt == 2
    assert json.loads(json.dumps(config.sampling()))["prompts"] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: a\nprompts: [a]\nseads: 3", "'seads' is unknown; did you mean 'seeds'"),
        ("prompts: [a]", "'out' is missing"),
        ("out: a", "'prompts' is missing"),
        ("out: a\nprompts: [a]\nbatch: 0", "batch=0: must be a whole number"),
        ("out: a\nprompts: [a]\nseeds: [1, 1]", "each once"),
        ("out: a\nprompts: [a]\nstored_dtype: int8", "stored_dtype='int8': one of float16"),
        (
            "out: a\nprompts: [a]\npairs: {margin: -1}",
            r"pairs\.margin=-1: must be a number of at least 0",
        ),
        ("out: a\nprompts: [a]\npairs: {margn: 2}", "pairs: 'margn' is unknown.*'margin'"),
        ("out: a\nprompts: [a]\npairs: {margin: '1e-5'}", r"pairs\.margin='1e-5'.*write 1\.0e-05"),
        ("out: a\nprompts: [a]\npairs: 3", "pairs=3: must hold"),
        ("out: a\nprompts: [a]\nseeds: 1\npairs: {}", "a pair needs two samples"),
        ("out: a\nprompts: [a]\nrewards: []", "name at least one"),
        ("- a", "must hold 'name: value'"),
        ("a: [", "not YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(TuneError, match=message):
        DataConfig.load(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.txt", "a cat\n\na dog\na cat\n", [("a cat", ""), ("a dog", "")]),
        ("p.json", '["a cat", {"prompt": "a dog", "category": "pet"}]', None),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog", "category": "pet"}\n', None),
        ("p.tsv", "Prompt\tCategory\na cat\t\na dog\tpet\n", None),
    ],
)
def test_prompt_files(name: str, content: str, expected: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    found = read_prompts(str(tmp_path / name))
    assert found == [Prompt(*p) for p in expected or [("a cat", ""), ("a dog", "pet")]]


def test_the_bundled_worlds_captions_have_categories() -> None:
    found = read_prompts({"shapes": "train", "count": 60, "seed": 1})
    assert len({p.text for p in found}) == 60
    assert {p.category for p in found} == {"single", "count", "two kinds", "relation"}
    assert all(
        (p.category == "relation") <= (" of " in p.text or "above" in p.text or "below" in p.text)
        for p in found
    )


@pytest.mark.parametrize(
    "source",
    [
        None,
        3,
        [],
        [""],
        [3],
        {"shapes": "test"},
        {"count": 3},
        "no.txt",
        "no.parquet",
        [{"p": "a"}],
    ],
)
def test_prompts_that_are_none(source: Any) -> None:
    with pytest.raises(TuneError, match="prompt"):
        read_prompts(source)


def test_seeds_belong_to_the_prompt_and_splits_are_exact() -> None:
    prompts = [Prompt(f"text {i}") for i in range(40)]
    config = DataConfig(out="x", prompts=["a"], seeds=4, shard=10, test_share=0.1)
    shards = plan(config, prompts)
    assert [len(s) for s in shards] == [8] * 20
    assert shards[3][5].seed == text_seed(0, "text 7", 1) and shards[3][5].id == "p00007-s001"
    assert len({s.seed for shard in shards for s in shard}) == 160
    fixed = DataConfig(out="x", prompts=["a"], seeds=[5, 9])
    assert [s.seed for s in plan(fixed, prompts)[0][:4]] == [5, 9, 5, 9]
    assert splits(config, 40).count("test") == 4


def test_histograms_and_scores() -> None:
    assert histogram([1.0, 1.0]) == "1: 2"
    assert histogram([]) == "no finite score"
    assert histogram([0.0, 1.0, 1.0, 8.0]) == "0 to 1: 1, 1 to 2: 2, 7 to 8: 1"
    assert check_scores([[1, 2]]).shape == (1, 2)
    with pytest.raises(TuneError, match="no scores"):
        check_scores([])
    with pytest.raises(TuneError, match="nan for number 1"):
        check_scores(np.array([1, np.nan]))


def test_differences_and_counts() -> None:
    check_unchanged(Path("x"), {"a": {"b": (1, 2)}}, {"a": {"b": [1, 2]}})
    with pytest.raises(TuneError, match=r"a\.b was 1, now 2; c was None, now 3"):
        check_unchanged(Path("x"), {"a": {"b": 1}}, {"a": {"b": 2}, "c": 3})
    with pytest.raises(TuneError, match="3 images, and 4 are needed: draw more"):
        check_enough(3, 4, "images", "draw more")
