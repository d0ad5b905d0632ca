"""`WorstRank` and `LowerBound` by hand, and what they are for: parts that are fooled apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import steer
from steer.rewards.combine.ensemble import (
    Ensemble,
    LowerBound,
    RankEnsemble,
    Standardised,
    WorstRank,
)


def first(images: Tensor, prompts: Any) -> Tensor:
    return images[:, 0].mean((1, 2))


def second(images: Tensor, prompts: Any) -> Tensor:
    return images[:, 1].mean((1, 2))


def of(kind: type[Ensemble], weights: tuple[float, ...] = (1.0, 1.0), **options: Any) -> Any:
    parts = [steer.reward(first), steer.reward(second)]
    return kind(list(zip(parts, weights, strict=True)), **options)


def parts(a: Any, b: Any) -> dict[str, Tensor]:
    return {"first": torch.as_tensor(a).float(), "second": torch.as_tensor(b).float()}


def test_the_worst_rank_by_hand() -> None:
    found = of(WorstRank).combine(parts([0.0, 1.0, 2.0], [5.0, 9.0, 7.0]))
    assert found.tolist() == [0.0, 0.5, 0.5]


def test_a_part_may_count_against() -> None:
    found = of(WorstRank, (1.0, -1.0)).combine(parts([0.0, 1.0, 2.0], [5.0, 9.0, 7.0]))
    assert found.tolist() == [0.0, 0.0, 0.5]


def test_the_lower_bound_of_two_is_the_smaller_of_them() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 9))
    z = [(v - v.mean()) / v.std() for v in (a, b)]
    found = of(LowerBound).combine(parts(a, b))
    np.testing.assert_allclose(found, np.minimum(*z), atol=1e-5)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 2.0])
def test_the_lower_bound_by_its_formula(kappa: float) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 7))
    z = np.array([(v - v.mean()) / v.std() for v in (a, b)])
    shares = np.array([[0.75], [0.25]])
    mean = (shares * z).sum(0)
    spread = np.sqrt((shares * (z - mean) ** 2).sum(0))
    found = of(LowerBound, (3.0, 1.0), kappa=kappa).combine(parts(a, b))
    np.testing.assert_allclose(found, mean - kappa * spread, atol=1e-5)


def test_of_no_caution_it_is_the_mean() -> None:
    rng = np.random.default_rng(2)
    scores = parts(*rng.normal(size=(2, 8)))
    found = of(LowerBound, kappa=0.0).combine(scores)
    torch.testing.assert_close(2 * found, of(Standardised).combine(scores))


@pytest.mark.parametrize("kind", [WorstRank, LowerBound])
def test_a_candidate_without_a_score_has_none(kind: type[Ensemble]) -> None:
    found = of(kind).combine(parts([1.0, float("nan"), 3.0], [1.0, 2.0, 3.0]))
    assert found.isnan().tolist() == [False, True, False]
    assert found[2] > found[0]


@pytest.mark.parametrize("kind", [RankEnsemble, WorstRank, Standardised, LowerBound])
def test_prompts_are_compared_apart(kind: type[Ensemble]) -> None:
    rng = np.random.default_rng(3)
    scores = parts(*rng.normal(size=(2, 8)))
    groups = [0, 1, 0, 1, 0, 1, 0, 1]
    both = of(kind).combine(scores, groups)
    even = of(kind).combine({k: v[::2] for k, v in scores.items()})
    torch.testing.assert_close(both[::2], even)


def test_of_two_judges_that_are_fooled_apart_any_is_better_than_one() -> None:
    """2 % of candidates fool one judge, others the other; half of the error is shared."""
    rng, draws, n = np.random.default_rng(0), 1500, 32
    gains: dict[str, list[float]] = {}
    for _ in range(draws):
        truth, shared, *own = rng.normal(size=(4, n))
        tricks = rng.uniform(size=(2, n)) < 0.02
        a, b = (
            0.6 * truth + 0.8 * (shared + e) / 2**0.5 + 5 * t
            for e, t in zip(own, tricks, strict=True)
        )
        gold = truth - 3.0 * tricks.any(0)
        gains.setdefault("one", []).append(gold[a.argmax()])
        for kind in (RankEnsemble, WorstRank, Standardised, LowerBound):
            row = int(of(kind).combine(parts(a, b)).argmax())
            gains.setdefault(kind.__name__, []).append(gold[row])
    means = {name: float(np.mean(values)) for name, values in gains.items()}
    for name in ("RankEnsemble", "WorstRank", "LowerBound"):
        assert means[name] > means["one"] + 0.5, means


@pytest.mark.parametrize(
    ("text", "kind"),
    [("worst(shapes,shapes-clip)", WorstRank), ("bound(shapes,shapes-clip)", LowerBound)],
)
def test_by_name(text: str, kind: type[Ensemble]) -> None:
    reward = steer.reward(text)
    assert isinstance(reward, kind)
    assert reward.name == text
    same = steer.reward({"shapes": 1.0, "shapes-clip": 1.0}, combine=reward.kind)
    assert same.name == text


def test_refuses_a_kappa_that_is_none() -> None:
    with pytest.raises(ValueError, match="kappa=-1"):
        of(LowerBound, kappa=-1)
