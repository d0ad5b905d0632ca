"""Priors learned from scores of several prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steer.core.errors import ThresholdError
from steer.rewards import Prior, Scores
from steer.rewards.thresholds.outlook import NormalScores
from steer.rewards.thresholds.prior import pooled_sd


def _scores(prompts: int, each: int, sd: float = 0.1, between: float = 0.2) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    centres = rng.normal(0.5, between, prompts)
    return {str(i): rng.normal(c, sd, each) for i, c in enumerate(centres)}


def test_it_finds_how_prompts_differ() -> None:
    prior = Prior.fit(_scores(60, 12))
    assert prior.unit == pytest.approx(0.1, rel=0.12)
    (mean,) = NormalScores(prior.knots).rewards([prior.mean])
    assert mean == pytest.approx(0.5, abs=0.06)
    assert prior.weight < 1  # a prompt's mean has to be seen: they differ by two spreads
    assert prior.freedom > 6  # and their spreads are all the same


def test_spreads_that_differ() -> None:
    rng = np.random.default_rng(0)
    scores = {str(i): rng.normal(0, sd, 12) for i, sd in enumerate([0.02, 0.3] * 20)}
    assert Prior.fit(scores).freedom < 4


def test_few_prompts_do() -> None:
    prior = Prior.fit({"a": [0.1, 0.2], "b": [0.3, 0.6]})
    assert np.isfinite([prior.mean, prior.sd, prior.weight, prior.freedom]).all()


def test_saved_and_loaded(tmp_path: Path) -> None:
    scores = Scores("hpsv2", version="v1").add([0.1, 0.2, 0.4, 0.3], ["a", "a", "b", "b"])
    prior = Prior.fit(scores)
    prior.save(tmp_path / "prior.json")
    assert Prior.load(tmp_path / "prior.json") == prior
    assert (prior.reward, prior.version) == ("hpsv2", "v1")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "steer-prior/1", "sd": 1}'])
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "prior.json").write_text(text)
    with pytest.raises(ThresholdError, match=r"prior\.json"):
        Prior.load(tmp_path / "prior.json")


@pytest.mark.parametrize(
    ("scores", "match"),
    [
        ({"a": [0.1], "b": [0.2]}, "no prompt has two"),
        ({"a": [0.1, 0.1], "b": [0.2, 0.2]}, "equal within every prompt"),
        ({}, "no prompt has two"),
        (Scores().add([0.1, 0.2]), "have no prompt"),
    ],
)
def test_scores_that_say_nothing(scores: Any, match: str) -> None:
    with pytest.raises(ThresholdError, match=match):
        Prior.fit(scores)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"mean": float("nan")}, "mean="),
        ({"mean": "0.3"}, "mean="),
        ({"sd": 0}, "sd="),
        ({"weight": -1}, "weight="),
        ({"freedom": 2}, "freedom="),
        ({"knots": (1.0,), "spread": 1.0}, "knots="),
        ({"knots": (2.0, 1.0), "spread": 1.0}, "knots="),
        ({"knots": (1.0, 2.0)}, "spread="),
        ({"spread": 0.1}, "spread="),
    ],
)
def test_bad_numbers(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Prior(**{"mean": 0.3, "sd": 0.1, **given})


def test_the_spread_is_that_of_the_upper_half() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(i, 0.2, 41) for i in range(200)]
    assert pooled_sd(groups) == pytest.approx(0.2, rel=0.05)
    assert np.isnan(pooled_sd([np.array([1.0]), np.array([2.0])]))
