"""Scales of rewards by prompt, fitted on plain images' scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steer.core.errors import ThresholdError
from steer.rewards import Scale, Scales, Scores
from steer.rewards.thresholds.beliefs import Belief


RNG = np.random.default_rng(0)
TRUTH = {f"prompt {i}": (RNG.normal(20, 2), RNG.uniform(0.3, 1.2)) for i in range(40)}


def draws(count: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {text: rng.normal(mean, sd, count) for text, (mean, sd) in TRUTH.items()}


def test_new_images_of_every_prompt_have_mean_0_and_deviation_1() -> None:
    scale, new = Scale.fit(draws(64, 1)), draws(2000, 2)
    z = {text: scale.of(own, text) for text, own in new.items()}
    means = np.array([own.mean() for own in z.values()])
    assert np.sqrt(np.square(means).mean()) < 0.2  # 64 pilots: 0.125
    assert np.mean([own.std() for own in z.values()]) == pytest.approx(1, abs=0.05)
    raw = np.array([own.mean() for own in new.values()])
    assert np.std([own.mean() for own in z.values()]) < 0.1 * np.std(raw)


def test_percentiles_are_uniform_and_keep_the_order() -> None:
    scale, new = Scale.fit(draws(32, 1), unit="percentile"), draws(500, 2)
    found = np.concatenate([scale.of(own, text) for text, own in new.items()])
    assert np.quantile(found, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    own = np.sort(new["prompt 0"])
    assert (np.diff(scale.of(own, "prompt 0")) > 0).all()


def test_few_pilots_are_drawn_to_the_others_deviation() -> None:
    """Nearer to the truth than each prompt's own deviation, over 40 prompts with four each."""
    pilots = draws(4, 3)
    scale = Scale.fit(pilots)
    truth = np.log([sd for _, sd in TRUTH.values()])
    own = np.log([np.std(pilots[text], ddof=1) for text in TRUTH])
    drawn = np.log([scale.at(text).sd for text in TRUTH])
    assert np.square(drawn - truth).mean() < 0.5 * np.square(own - truth).mean()


def test_a_prompt_without_pilots() -> None:
    with pytest.raises(ThresholdError, match="has 40 prompts and not this one"):
        Scale.fit(draws(8, 1)).of([20.0], "new")
    scale = Scale.fit(draws(8, 1), unknown="global")
    assert scale.at("new").centre == pytest.approx(20, abs=1)


def test_saved_and_loaded(tmp_path: Path) -> None:
    scores = Scores("hpsv2", version="v1", model="sd").add([0.1, 0.2, 0.4, 0.3], list("aabb"))
    scales = Scales([Scale.fit(scores, unit="percentile"), Scale.fit(draws(4, 0), reward="other")])
    scales.save(tmp_path / "scales.json")
    found = Scales.load(tmp_path / "scales.json")
    assert found == scales and found[0].digest == scales[0].digest != found[1].digest
    assert (found[0].reward, found[0].version, found[0].model) == ("hpsv2", "v1", "sd")
    assert found[0].of([0.15], "a").tolist() == scales[0].of([0.15], "a").tolist()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "steer-scales/1", "scales": [{"unit": "z"}]}']
)
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "scales.json").write_text(text)
    with pytest.raises(ThresholdError, match=r"scales\.json"):
        Scales.load(tmp_path / "scales.json")


def test_what_has_no_scale() -> None:
    with pytest.raises(ThresholdError, match="no prompt has two that differ"):
        Scale.fit({"a": [0.1], "b": [0.3, 0.3]})
    with pytest.raises(ThresholdError, match="unit='rank': one of 'z', 'percentile'"):
        Scale.fit(draws(4, 0), unit="rank")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ThresholdError, match="no law of scores"):
        Scale("z", Belief(0.0, 1.0, 2.0, 0.0))
