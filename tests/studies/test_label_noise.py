"""Deliberately wrong labels: exact shares, nested by size, on the same images."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from tiny_sets import write_set

from steer.tune.dataset import Dataset


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def noise() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("label_noise")
        sys.modules.pop("label_noise", None)


@given(st.integers(0, 200), st.floats(0, 1), st.integers(0, 5))
def test_the_share_is_exact_and_grows_by_inclusion(
    noise: Any, n: int, share: float, seed: int
) -> None:
    chosen = noise.chosen_share(n, share, seed)
    assert chosen.sum() == round(share * n)
    assert (chosen <= noise.chosen_share(n, 1.0, seed)).all()
    assert (noise.chosen_share(n, share / 2, seed) <= chosen).all()


def test_reflection_turns_the_label_round_and_keeps_its_distance(noise: Any) -> None:
    scores = np.array([0.0, 1.0, 2.0, 3.0, 10.0])
    noisy = noise.reflect(scores, np.array([True, False, False, False, True]))
    assert noisy.tolist() == [4.0, 1.0, 2.0, 3.0, -6.0]


def test_a_share_of_the_pairs_is_swapped_and_the_rest_stays(noise: Any, tmp_path: Path) -> None:
    clean = write_set(tmp_path / "clean")
    noisy = noise.noisy_pairs(clean, tmp_path / "noisy", 0.4)
    before, after = Dataset.load(clean).pairs, Dataset.load(noisy).pairs
    assert before is not None and after is not None
    flipped = pq.read_table(noisy / "pairs.parquet")["flipped"].to_numpy(zero_copy_only=False)
    assert flipped.sum() == round(0.4 * len(before))
    assert (after.winner == np.where(flipped, before.loser, before.winner)).all()
    assert (after.loser == np.where(flipped, before.winner, before.loser)).all()
    assert ((after.margin < 0) == flipped).all()
    assert (noisy / "latents-00000.safetensors").samefile(clean / "latents-00000.safetensors")
    assert not (noisy / "pairs.parquet").samefile(clean / "pairs.parquet")
    assert json.loads((noisy / "manifest.json").read_text())["label_noise"]["flipped"] == 5
    assert "label_noise" not in json.loads((clean / "manifest.json").read_text())


def test_a_share_of_the_scores_is_reflected(noise: Any, tmp_path: Path) -> None:
    clean = write_set(tmp_path / "clean", pairs=None)
    noisy = noise.noisy_scores(clean, tmp_path / "noisy", 0.4)
    table = pq.read_table(noisy / "index.parquet")
    flipped = table["flipped"].to_numpy(zero_copy_only=False)
    score, true = table["score"].to_numpy(), table["clean_score"].to_numpy()
    assert (true == Dataset.load(clean).scores).all() and flipped.sum() == round(0.4 * len(true))
    np.testing.assert_allclose(
        (score - np.median(true))[flipped], (np.median(true) - true)[flipped]
    )
    assert (score[~flipped] == true[~flipped]).all()
    assert (Dataset.load(noisy).scores == score).all()
