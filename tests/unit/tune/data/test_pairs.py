"""Pairs against an exhaustive search, and what they refuse."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from steer.core.errors import TuneError
from steer.tune.data.config import PairConfig
from steer.tune.data.diversity import most_diverse
from steer.tune.data.pairs import (
    Table,
    balance_rows,
    make_pairs,
)


def table(
    main: list[list[float]],
    other: list[list[float]] | None = None,
    content: list[str] | None = None,
    category: str = "",
) -> Table:
    """Scores by prompt."""
    flat = [value for row in main for value in row]
    scores = {"main": np.array(flat, dtype=np.float64)}
    if other is not None:
        scores["other"] = np.array([v for row in other for v in row], dtype=np.float64)
    prompts = [p for p, row in enumerate(main) for _ in row]
    return Table(
        [f"i{k}" for k in range(len(flat))],
        np.array(prompts),
        scores,
        content or [str(k) for k in range(len(flat))],
        ["train"] * len(flat),
        [category or "ab"[p % 2] for p in prompts],
    )


few = st.integers(0, 4).map(lambda n: n / 4)  # coarse, so that ties happen
grids = st.integers(2, 4).flatmap(
    lambda n: st.lists(
        st.lists(st.tuples(few, few), min_size=n, max_size=n), min_size=1, max_size=5
    )
)


@settings(deadline=None)
@given(grids, st.sampled_from([0.0, 0.25, 0.6]), st.booleans())
def test_all_pairs_equal_an_exhaustive_search(
    grid: list[list[tuple[float, float]]], margin: float, consensus: bool
) -> None:
    main = [[a for a, _ in row] for row in grid]
    other = [[b for _, b in row] for row in grid]
    samples = table(main, other)
    expected = set()
    for rows in samples.groups():
        for i, j in permutations(rows.tolist(), 2):
            gap = samples.main[i] - samples.main[j]
            agreed = samples.scores["other"][i] > samples.scores["other"][j]
            if gap > 0 and gap >= margin and (agreed or not consensus):
                expected.add((i, j))
    config = PairConfig(per_prompt=None, margin=margin, consensus=consensus)
    if not expected:
        with pytest.raises(TuneError, match=r"none is left|equal"):
            make_pairs(samples, config)
        return
    equal = any(len(set(v.tolist())) == 1 for v in samples.scores.values())
    if equal:
        with pytest.raises(TuneError, match="equal"):
            make_pairs(samples, config)
        return
    pairs = make_pairs(samples, config)
    assert set(zip(pairs.winner.tolist(), pairs.loser.tolist(), strict=True)) == expected
    assert np.allclose(pairs.margin, samples.main[pairs.winner] - samples.main[pairs.loser])
    total = sum(len(row) * (len(row) - 1) // 2 for row in grid)
    reasons = {k: n for k, n in pairs.dropped.items() if k != "prompts"}
    assert sum(reasons.values()) + len(expected) == total
    one = make_pairs(samples, PairConfig(margin=margin, consensus=consensus))
    widest = Counter(samples.prompt_ids[one.winner].tolist())
    assert set(widest.values()) == {1}
    for winner, gap in zip(one.winner, one.margin, strict=True):
        same = samples.prompt_ids[pairs.winner] == samples.prompt_ids[winner]
        assert gap == pairs.margin[same].max()


@settings(deadline=None)
@given(st.lists(st.tuples(few, few, few), min_size=2, max_size=5))
def test_a_majority_decides_and_its_share_is_the_margin(grid: list[tuple[float, ...]]) -> None:
    samples = table([[row[0] for row in grid]])
    for k, name in enumerate(("second", "third"), 1):
        samples.scores[name] = np.array([row[k] for row in grid])
    expected = {}
    for i, j in permutations(range(len(grid)), 2):
        votes = sum(np.sign(grid[i][k] - grid[j][k]) for k in range(3))
        if votes > 0:
            expected[i, j] = votes / 3
    config = PairConfig(per_prompt=None, consensus="majority")
    if not expected or any(len(set(v.tolist())) == 1 for v in samples.scores.values()):
        with pytest.raises(TuneError, match=r"none is left|equal"):
            make_pairs(samples, config)
        return
    pairs = make_pairs(samples, config)
    found = zip(pairs.winner.tolist(), pairs.loser.tolist(), pairs.margin.tolist(), strict=True)
    assert {(i, j): share for i, j, share in found} == pytest.approx(expected)
    assert pairs.margin.tolist() == sorted(pairs.margin.tolist(), reverse=True)


def test_margins_by_reward_and_in_spreads() -> None:
    main, other = [[0.0, 1.0], [0.0, 3.0]], [[0.0, 0.1], [0.0, 0.2]]
    samples = table(main, other)
    pairs = make_pairs(samples, PairConfig(margin={"other": 0.15}))
    assert samples.prompt_ids[pairs.winner].tolist() == [1]
    spread = np.sqrt((2 * 0.25 + 2 * 2.25) / 4)  # about each prompt's mean
    assert len(make_pairs(samples, PairConfig(margin=0.99 / spread, unit="spread"))) == 2
    assert len(make_pairs(samples, PairConfig(margin=1.01 / spread, unit="spread"))) == 1
    with pytest.raises(TuneError, match="margin names 'else'"):
        make_pairs(samples, PairConfig(margin={"else": 1.0}))


def test_identical_images_and_prompts_that_tie_are_left_out_and_counted() -> None:
    samples = table([[0.2, 0.2, 0.2], [0.1, 0.6, 0.9]], content=["a", "a", "b", "c", "d", "d"])
    pairs = make_pairs(samples, PairConfig(per_prompt=None))
    assert pairs.dropped == {
        "ties": 2,
        "margin": 0,
        "disagreement": 0,
        "identical": 2,
        "prompts": 1,
    }
    assert len(pairs) == 2


def test_balance_is_exact_and_random_choice_is_seeded() -> None:
    rng = np.random.default_rng(0)
    samples = table(rng.random((9, 4)).tolist())
    pairs = make_pairs(samples, PairConfig(per_prompt=2, choose="random"), balance=True)
    counts = Counter(samples.category[row] for row in pairs.winner)
    assert counts == {"a": 8, "b": 8}
    again = make_pairs(samples, PairConfig(per_prompt=2, choose="random"), balance=True)
    assert (again.winner == pairs.winner).all()
    kept = balance_rows(list("aabbbbc"), np.random.default_rng(1), "x")
    assert Counter("aabbbbc"[i] for i in kept) == {"a": 1, "b": 1, "c": 1}
    with pytest.raises(TuneError, match="all of category 'a'"):
        make_pairs(table([[0, 1]], category="a"), PairConfig(), balance=True)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[0.5, 0.5], [0.5, 0.5]], r"all 4 scores are equal.*histogram 0.5: 4"),
        ([[0.5, float("nan")]], r"nan for i1 \(1 of 2"),
        ([[0.5, float("inf")]], "inf for i1"),
        ([[0.5, 0.5], [0.7, 0.7]], r"none is left of 2 prompts.*2 ties.*2 prompts without"),
    ],
)
def test_scores_that_make_no_pair_are_refused(scores: Any, message: str) -> None:
    with pytest.raises(TuneError, match=message):
        make_pairs(table(scores), PairConfig())


def test_too_few_pairs_are_refused() -> None:
    samples = table([[0.1, 0.2], [0.1, 0.9]])
    with pytest.raises(TuneError, match=r"1 pairs, and 2 are needed.*1 within the margin"):
        make_pairs(samples, PairConfig(count=2, margin=0.5))
    assert len(make_pairs(samples, PairConfig(count=1))) == 1


@settings(deadline=None)
@given(st.integers(3, 12), st.integers(2, 4), st.floats(0.1, 3.0), st.integers(0, 2**32 - 1))
def test_diverse_pairs_are_taken_one_by_one(
    prompts: int, per_prompt: int, weight: float, seed: int
) -> None:
    """Against the rule in plain loops, in float64."""
    rng = np.random.default_rng(seed)
    features = {k: _unit(rng.normal(size=5)) for k in range(prompts)}
    prompt = np.repeat(np.arange(prompts), per_prompt)
    margin = rng.random(len(prompt))
    count = int(rng.integers(1, len(prompt) + 1))
    kept: list[int] = []
    while len(kept) < count:
        found = {}
        for row in set(range(len(prompt))) - set(kept):
            own = features[int(prompt[row])].astype(float)
            away = [np.linalg.norm(own - features[int(prompt[k])].astype(float)) for k in kept]
            nearest = max(min([2.0, *away]), 1e-3)
            found[row] = margin[row] / margin.std() + weight * np.log(nearest)
        kept.append(max(sorted(found), key=lambda row: found[row]))
    chosen = most_diverse(margin, prompt, features, weight, count)
    assert chosen.tolist() == sorted(kept)


def _unit(x: Any) -> Any:
    return (x / np.linalg.norm(x)).astype(np.float32)


def test_of_equal_prompts_one_is_kept_before_others_repeat() -> None:
    features = {0: _unit(np.array([1.0, 0.0])), 2: _unit(np.array([0.0, 1.0]))}
    features |= {1: features[0], 3: features[2]}
    samples = table([[0.0, 0.9], [0.0, 0.8], [0.0, 0.3], [0.0, 0.2]])
    samples.features = features
    wide = make_pairs(samples, PairConfig(count=2, diversity=1.0))
    assert samples.prompt_ids[wide.winner].tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"pairs\.diversity=1 without count"):
        PairConfig(diversity=1.0)
