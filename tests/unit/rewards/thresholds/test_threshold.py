"""`Threshold` and `Scores`: exact under merging, the declared formulas, files, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import steer
from steer import Threshold
from steer.core.errors import ThresholdError
from steer.rewards import Scores
from steer.rewards.function import FunctionReward
from steer.rewards.thresholds.levels import free_energy


numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
texts = st.sampled_from(["", "a", "b", "a red circle"])
samples = st.lists(st.tuples(numbers, texts), min_size=1, max_size=40)
rules: Any = st.sampled_from(
    [
        {"quantile": 0.0},
        {"quantile": 0.3},
        {"quantile": 1.0},
        {"rule": "mean"},
        {"rule": "log-mean-exp", "beta": 0.7},
    ]
)


def filled(rows: Sequence[tuple[float, str]]) -> Scores:
    scores = Scores("r", version="2")
    for value, prompt in rows:
        scores.add(value, prompt)
    return scores


@settings(deadline=None, max_examples=150)
@given(samples, st.data(), rules, st.booleans())
def test_parts_merged_in_any_order_are_the_whole(
    rows: list[tuple[float, str]], data: Any, rule: dict[str, Any], per_prompt: bool
) -> None:
    whole = Threshold.fit(filled(rows), per_prompt=per_prompt, **rule)
    mixed = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    a, b = filled(mixed[:cut]), filled(mixed[cut:])
    both = Threshold.fit(b.merge(a), per_prompt=per_prompt, **rule)
    assert both == whole
    assert repr(both) == repr(whole)
    if 0 < cut < len(rows):
        parts = [Threshold.fit(part, per_prompt=per_prompt, **rule) for part in (a, b)]
        assert parts[1].merge(parts[0]) == whole


@settings(deadline=None, max_examples=200)
@given(st.lists(numbers, min_size=1, max_size=60), st.floats(0, 1))
def test_the_quantile_is_numpys_and_splits_the_scores(values: list[float], q: float) -> None:
    threshold = Threshold.fit(values, q)
    assert threshold.tau == np.quantile(values, q)
    share = np.mean(threshold.accept(values))
    below = sorted(values)[: math.floor(q * (len(values) - 1))]
    assert share >= (len(values) - math.floor(q * (len(values) - 1)) - 1) / len(values)
    assert all(value <= threshold.tau for value in below)
    assert threshold.spread == pytest.approx(np.std(values), rel=1e-9, abs=1e-6)
    assert threshold.count == len(values)


def test_the_median_is_the_default_and_ties_are_positive() -> None:
    threshold = Threshold.fit([0.0, 0.0, 0.0, 1.0])
    assert (threshold.tau, threshold.quantile) == (0.0, 0.5)
    assert threshold.label([0.0, -1e-300, 5.0]).tolist() == [1.0, 0.0, 1.0]
    assert threshold.accept(0.0) is True


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30))
def test_the_free_energy_lies_between_its_limits(values: list[float]) -> None:
    array = np.array(values)
    mean, top = array.mean(), array.max()
    assert free_energy(array, 1e12) == pytest.approx(mean, abs=1e-8)
    assert free_energy(array, 1e-9) == pytest.approx(top, abs=1e-6)
    assert free_energy(array, 1e-320) == pytest.approx(top, abs=1e-12)
    steps = [free_energy(array, beta) for beta in (0.01, 0.1, 1.0, 10.0, 1e3)]
    assert all(b <= a + 1e-9 for a, b in pairwise(steps))  # falls with beta
    assert mean - 1e-9 <= steps[-1] and steps[0] <= top + 1e-9


def test_the_free_energy_is_the_formula() -> None:
    values = torch.linspace(-3, 4, 11, dtype=torch.float64)
    beta = 0.6
    plain = beta * torch.log(torch.exp(values / beta).mean())
    assert free_energy(values.numpy(), beta) == pytest.approx(float(plain), rel=1e-13)
    shifted = free_energy(values.numpy() * 1e3 + 1e5, beta)  # where exp overflows
    stable = beta * (torch.logsumexp((values * 1e3 + 1e5) / beta, 0) - math.log(11))
    assert shifted == pytest.approx(float(stable), rel=1e-13)


KINDS: list[Any] = [
    torch.tensor([0.1, 0.25, 0.3]),
    torch.tensor([0.1, 0.25, 0.3], dtype=torch.float64),
    np.array([0.1, 0.25, 0.3]),
    [0.1, 0.25, 0.3],
]


@pytest.mark.parametrize("rewards", KINDS)
def test_floats_lists_and_tensors_agree(rewards: Any) -> None:
    threshold = Threshold(0.25, spread=0.05)
    alone = [float(r) for r in rewards]
    for name in ("accept", "label", "confidence", "margin"):
        together = getattr(threshold, name)(rewards)
        assert isinstance(together, torch.Tensor if torch.is_tensor(rewards) else np.ndarray)
        apart = [getattr(threshold, name)(r) for r in alone]
        assert all(isinstance(value, float | bool) for value in apart)
        assert np.asarray(together).tolist() == pytest.approx(apart, rel=1e-6)
    assert threshold.confidence(0.35, c=3) == pytest.approx(1 + 3 * 0.1 / 0.05)
    assert threshold.accept(float("nan")) is False


def test_tensors_keep_their_shape_and_labels_their_type() -> None:
    threshold = Threshold.fit({"a": [0.0, 2.0], "b": [10.0, 14.0]}, per_prompt=True)
    rewards = torch.tensor([[0.0, 1.0, 2.0], [11.0, 12.0, 13.0]], dtype=torch.bfloat16)
    labels = threshold.label(rewards, ["a", "b"])
    assert labels.dtype == torch.float32
    assert labels.tolist() == [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    assert threshold.confidence(rewards, ["a", "b"]).dtype == torch.float32
    assert threshold.accept(torch.tensor(1.0), "a").item() is True


def test_gradients_pass_through_the_margin() -> None:
    rewards = torch.tensor([0.1, 0.4], requires_grad=True)
    Threshold(0.2).margin(rewards).sum().backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [1.0, 1.0]


def test_confidence_does_not_depend_on_the_reward_s_unit() -> None:
    values = np.random.default_rng(0).normal(size=200)
    small = Threshold.fit(0.02 * values + 0.26)
    large = Threshold.fit(values)
    assert np.allclose(small.confidence(0.02 * values + 0.26), large.confidence(values))
    paper = 1 + 5 * np.abs(0.02 * values + 0.26 - small.tau)
    assert np.allclose(small.confidence(0.02 * values + 0.26, c=5 * small.spread), paper)


def test_levels_by_prompt() -> None:
    rows = {"a": [0.0, 1.0, 5.0], "b": [10.0, 11.0]}
    means = Threshold.fit(rows, per_prompt=True, rule="mean")
    assert means.prompts == {"a": 2.0, "b": 10.5}
    assert means.tau == pytest.approx(5.4)
    within = [0.0 - 2, 1.0 - 2, 5.0 - 2, 10 - 10.5, 11 - 10.5]
    assert means.spread == pytest.approx(np.sqrt(np.mean(np.square(within))))
    assert means.accept(10.4, "b") is False and means.accept(10.4, "a") is True
    assert means.accept([2.0, 2.0], ["a", "b"]).tolist() == [True, False]
    free = Threshold.fit(rows, per_prompt=True, rule="log-mean-exp", beta=2.0)
    expected = 2 * (torch.logsumexp(torch.tensor([0.0, 0.5, 2.5]), 0) - math.log(3))
    assert free.at("a") == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ThresholdError, match=r"prompt='c'.*2 prompts.*unknown='global'"):
        means.accept(1.0, "c")
    with pytest.raises(ThresholdError, match="prompt=None"):
        means.accept(1.0)
    lenient = Threshold.fit(rows, per_prompt=True, rule="mean", unknown="global")
    assert lenient.at("c") == lenient.at() == lenient.tau


@pytest.mark.parametrize("per_prompt", [False, True])
def test_files_give_back_the_same_threshold(tmp_path: Path, per_prompt: bool) -> None:
    scores = Scores("hpsv2.1", version="c7ab", model="owner/name").add([0.1, 1 / 3, 0.2], "a")
    scores.add(torch.tensor([0.7, 0.1]), ["é", "b"])
    threshold = Threshold.fit(scores, 0.8, per_prompt)
    threshold.save(tmp_path / "tau.json")
    loaded = Threshold.load(tmp_path / "tau.json")
    assert loaded == threshold
    assert loaded.merge(threshold) == threshold.merge(loaded)
    assert loaded.scores is not None and len(loaded.scores) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["tau.json"]
    data = json.loads((tmp_path / "tau.json").read_text())
    known = {"reward": "hpsv2.1", "version": "c7ab", "model": "owner/name", "quantile": 0.8}
    assert known.items() <= data.items()
    assert (data["count"], data["steer"]) == (5, loaded.steer)
    assert eval(repr(loaded), {"Threshold": Threshold}) == threshold  # its repr is its recipe


def test_an_accumulator_that_goes_on_does_not_change_a_threshold() -> None:
    scores = Scores("r").add([1.0, 2.0])
    threshold = Threshold.fit(scores)
    scores.add(100.0)
    assert threshold.scores is not None
    assert (len(threshold.scores), len(scores)) == (2, 3)


def reward(name: str, version: str | None = None) -> Any:
    made = FunctionReward(lambda images, prompts: images.mean((1, 2, 3)), name=name)
    if version is not None:
        made.version = version  # pyright: ignore[reportAttributeAccessIssue]
    return made


def test_another_reward_or_version_is_refused() -> None:
    threshold = Threshold.fit([0.1, 0.2], reward=reward("hpsv2.1", "c7ab"))
    threshold.check(reward("hpsv2.1", "c7ab"))
    threshold.check(reward("hpsv2.1"))  # unknown versions are not compared
    with pytest.raises(ThresholdError, match=r"'hpsv2.1' version 'c7ab'.*'hpsv2.0'"):
        threshold.check(reward("hpsv2.0"))
    with pytest.raises(ThresholdError, match=r"version 'c7ab'.*version 'd000'"):
        threshold.check(reward("hpsv2.1", "d000"))
    Threshold(0.3).check(reward("anything"))
    with pytest.raises(ThresholdError, match=r"'hpsv2.1'.*'pickscore'"):
        Threshold.fit(Scores("pickscore").add(1.0), reward="hpsv2.1")
    with pytest.raises(ThresholdError, match=r"reward 'a' cannot be merged with .* reward 'b'"):
        Scores("a").merge(Scores("b"))
    with pytest.raises(ThresholdError, match="version '1' cannot be merged"):
        Scores("a", version="1").merge(Scores("a", version="2"))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"scores": []}, "scores: none"),
        ({"scores": [0.1, float("nan")]}, "number 1 of 2 is nan"),
        ({"scores": ["high"]}, "must be numbers"),
        ({"scores": [0.1], "quantile": 1.5}, r"quantile=1.5.*\[0, 1\]"),
        ({"scores": [0.1], "quantile": "half"}, "quantile='half'"),
        ({"scores": [0.1], "rule": "mode"}, "rule='mode'.*'quantile'"),
        ({"scores": [0.1], "rule": "mean", "quantile": 0.5}, "quantile=0.5 with rule='mean'"),
        ({"scores": [0.1], "rule": "log-mean-exp"}, "beta=None"),
        ({"scores": [0.1], "rule": "log-mean-exp", "beta": 0.0}, "beta=0.0"),
        ({"scores": [0.1], "rule": "log-mean-exp", "beta": math.inf}, "beta=inf"),
        ({"scores": [0.1], "beta": 1.0}, "beta=1.0 with rule='quantile'"),
        ({"scores": [0.1], "per_prompt": True}, "1 scores have no prompt"),
        ({"scores": [0.1], "unknown": "ignore"}, "unknown='ignore'"),
    ],
)
def test_bad_fits(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ThresholdError, match=named):
        Threshold.fit(**given)


def test_other_bad_input(tmp_path: Path) -> None:
    for tau in (float("nan"), float("inf"), "high", True):
        with pytest.raises(ThresholdError, match="tau="):
            Threshold(tau)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ThresholdError, match="2 prompts for 3 scores"):
        Scores().add([1.0, 2.0, 3.0], ["a", "b"])
    with pytest.raises(ThresholdError, match=r"2 prompts for rewards of shape \(3,\)"):
        Threshold.fit({"a": 1.0}, per_prompt=True).accept([1.0, 2.0, 3.0], ["a", "a"])
    with pytest.raises(ThresholdError, match="c=-1"):
        Threshold(0.1, spread=1.0).confidence(0.2, c=-1)
    with pytest.raises(ThresholdError, match="spread, which is 0"):
        Threshold.fit([0.2, 0.2]).confidence(0.3)
    with pytest.raises(ThresholdError, match="without its scores"):
        Threshold(0.1).merge(Threshold(0.2))
    with pytest.raises(ThresholdError, match=r"fitted differently.*0.5.*0.9"):
        Threshold.fit([1.0]).merge(Threshold.fit([1.0], 0.9))
    with pytest.raises(ThresholdError, match=r"gone.json'.*No such file"):
        Threshold.load(tmp_path / "gone.json")
    bad = tmp_path / "bad.json"
    for text, named in [
        ("{", "cannot be read"),
        ("[1]", "not a threshold file"),
        ("{}", "not a steer-threshold/1 file"),
        ('{"format": "steer-threshold/1"}', "damaged"),
        ('{"format": "steer-threshold/1", "tau": 1, "colour": 2}', "damaged.*colour"),
        ('{"format": "steer-threshold/1", "tau": 1, "scores": [[1, ["a"]]]}', "damaged"),
    ]:
        bad.write_text(text)
        with pytest.raises(ThresholdError, match=named):
            Threshold.load(bad)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "tau.json"
    Threshold(0.1).save(path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        Threshold(0.2).save(path)
    assert Threshold.load(path).tau == 0.1
    assert [p.name for p in tmp_path.iterdir()] == ["tau.json"]


def test_a_threshold_error_is_the_library_s() -> None:
    assert issubclass(ThresholdError, steer.SteerError) and issubclass(ThresholdError, ValueError)
    assert repr(Scores("x").add(1.0)) == "Scores('x', 1 of 1 prompts)"
