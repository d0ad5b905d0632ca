"""Rewards on the scale of their prompts' plain images, alone, in sums, and in a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import arguments, redness, seeded, shared
from torch import Tensor

import steer
from steer.core.errors import ThresholdError
from steer.methods import BestOfN
from steer.pipeline import fit_scales
from steer.rewards import Scale, Scaled, Scales, Threshold


PROMPTS = ["a red circle", "two"]


def contrast(images: Tensor, prompts: Any) -> Tensor:
    return 1e3 * images.flatten(1).std(1)


def call(**given: Any) -> dict[str, Any]:
    own = arguments("sd", **given)
    return {key: own[key] for key in own if key not in ("prompt", "generator")}


def own_scores() -> dict[str, list[float]]:
    return {"a": [0.1, 0.2, 0.3], "b": [5.0, 7.0, 9.0]}


def scale(name: str = "redness", unit: Any = "z") -> Scale:
    return Scale.fit(own_scores(), reward=name, unit=unit)


def test_scores_are_in_units_of_each_prompt() -> None:
    images = torch.rand(4, 3, 8, 8, generator=seeded(0))
    texts = ["a", "b", "a", "b"]
    raw = steer.reward(redness)(images, texts).double().numpy()
    for unit in ("z", "percentile"):
        own = scale(unit=unit)
        expected = [own.of([value], text)[0] for value, text in zip(raw, texts, strict=True)]
        found = steer.reward(redness, scale=own)(images, texts)
        assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_gradients_are_those_of_the_reward_in_its_units() -> None:
    own, images = scale(), torch.rand(2, 3, 8, 8, generator=seeded(0)).requires_grad_()
    reward = steer.reward(steer.reward(redness, differentiable=True), scale=own)
    assert reward.differentiable
    (scaled,) = torch.autograd.grad(reward(images, ["a", "b"]).sum(), images)
    (plain,) = torch.autograd.grad(redness(images, ["a", "b"]).sum(), images)
    for row, text in enumerate("ab"):
        assert torch.allclose(scaled[row], plain[row] / own.at(text).sd)


def test_one_run_gives_the_scales_of_all_parts(tmp_path: Path) -> None:
    guided = steer.guided(shared("sd"), {redness: 1.0, contrast: 0.0})
    scales = fit_scales(guided, PROMPTS, each=4, **call())
    assert [own.reward for own in scales] == ["redness", "contrast"]
    assert [sorted(own.prompts) for own in scales] == [sorted(PROMPTS)] * 2
    scales.save(tmp_path / "scales.json")
    reward: Any = steer.reward({redness: 1.0, contrast: 1.0}, scale=tmp_path / "scales.json")
    assert list(reward.rewards) == ["redness (z by prompt)", "contrast (z by prompt)"]
    out = steer.guided(shared("sd"), reward, method=BestOfN(4))(
        **arguments("sd", prompt=PROMPTS, generator=[seeded(0), seeded(1)])
    )
    for prompt in (0, 1):
        (row,) = [r for r in out.report.trace.of("score", prompt) if not r["preview"]]
        for name, values in row["parts"].items():  # the same seeds: the pilots themselves
            assert abs(np.mean(values)) < 1, name
            assert 0.3 < np.std(values) < 2, name


def test_a_threshold_of_one_scale_is_refused_under_another() -> None:
    one, other = scale(), Scale.fit({"a": [0.0, 9.0]}, reward="redness")
    threshold = Threshold.fit([0.0, 1.0], reward=Scaled(steer.reward(redness), one))
    threshold.check(Scaled(steer.reward(redness), one))
    with pytest.raises(ThresholdError, match="version"):
        threshold.check(Scaled(steer.reward(redness), other))


def test_a_prompt_without_pilots_is_told_before_anything_is_drawn() -> None:
    seen: list[int] = []

    def counted(images: Tensor, prompts: Any) -> Tensor:
        seen.append(len(images))
        return redness(images, prompts)

    own = scale("counted")
    guided = steer.guided(shared("sd"), {steer.reward(counted, scale=own): 1.0})
    with pytest.raises(ThresholdError, match="prompt='c': the scale of 'counted' has 2 prompts"):
        guided(**arguments("sd", prompt=["a", "c"], generator=[seeded(0), seeded(1)]))
    assert not seen
    known = Scale.fit(own_scores(), reward="counted", unknown="global")
    guided = steer.guided(shared("sd"), steer.reward(counted, scale=known), method=BestOfN(1))
    guided(**arguments("sd", prompt=["a", "c"], generator=[seeded(0), seeded(1)]))


def test_what_cannot_be_scaled() -> None:
    with pytest.raises(ThresholdError, match="no scale is of reward 'contrast'"):
        steer.reward({redness: 1.0, contrast: 1.0}, scale=Scales([scale()]))
    with pytest.raises(ThresholdError, match="scale of reward 'redness'"):
        Scaled(steer.reward(contrast), scale())
    with pytest.raises(ValueError, match="a scale cannot be held against"):
        steer.reward({redness: 1.0, contrast: 1.0}, combine="rank", scale=scale())
    guided = steer.guided(shared("sd"), redness)
    with pytest.raises(ValueError, match="each=1: plain images per prompt, at least 2"):
        fit_scales(guided, PROMPTS, each=1)
    with pytest.raises(ValueError, match="prompts has 'two' twice"):
        fit_scales(guided, ["two", "two"])
