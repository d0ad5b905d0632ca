"""Statistics against closed forms and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from steer.jobs.compare import analysis
from steer.jobs.compare.plot import Point, digits_for, frontier, text_of
from steer.jobs.compare.scoring import BLOCK, blocks, pixel_spread, spread


def test_pairing_removes_what_prompts_share() -> None:
    """Prompts differ by 10, arms by 0.1: only the paired interval sees it."""
    rng = np.random.default_rng(2)
    theirs = rng.normal(0, 10, (200, 1)) + rng.normal(0, 0.1, (200, 3))
    ours = theirs + 0.1
    found = analysis.compare_pair(ours, theirs)
    assert found["difference"]["mean"] == pytest.approx(0.1)
    assert found["difference"]["low"] > 0 and found["wins"] == 200


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 20), st.integers(1, 3), st.integers(0, 10**6))
def test_pairs_are_antisymmetric(prompts: int, seeds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 3, (2, prompts, seeds)).astype(float)
    one, other = analysis.compare_pair(a, b), analysis.compare_pair(b, a)
    assert (one["wins"], one["ties"]) == (other["losses"], other["ties"])
    assert one["wins"] + one["ties"] + one["losses"] == prompts
    assert one["difference"]["mean"] == pytest.approx(-other["difference"]["mean"])
    wins = sum(a[p].mean() > b[p].mean() + 1e-6 for p in range(prompts))
    assert one["wins"] == wins


def test_the_hps_protocol_by_hand() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(0.28, 0.02, (3200, 1))
    categories = [s for s in ("anime", "concept-art", "paintings", "photo") for _ in range(800)]
    found = analysis.protocol(scores, categories)
    assert found is not None
    for k, style in enumerate(("anime", "concept-art", "paintings", "photo")):
        groups = []
        for g in range(10):
            start = 800 * k + 80 * g
            groups.append(100 * sum(float(v) for v in scores[start : start + 80, 0]) / 80)
        mean = sum(groups) / 10
        std = (sum((g - mean) ** 2 for g in groups) / 10) ** 0.5
        assert found["styles"][style]["mean"] == pytest.approx(mean, rel=1e-12)
        assert found["styles"][style]["std"] == pytest.approx(std, rel=1e-9)
    assert found["average"] == pytest.approx(100 * scores.mean())
    assert analysis.protocol(scores[:100], categories[:100]) is None


def test_analyse_covers_every_pair() -> None:
    scores = {"r": np.random.default_rng(4).normal(size=(4, 6, 2))}
    found = analysis.analyse(["a", "b", "c", "d"], "c", scores, ["x", "y"] * 3)
    pairs = {frozenset((p["arm"], p["against"])) for p in found["pairs"]}
    assert len(found["pairs"]) == len(pairs) == 6
    assert all(p["against"] == "c" for p in found["pairs"] if "c" in (p["arm"], p["against"]))
    gaps = np.ptp(scores["r"].mean(2), axis=0)
    assert found["disagreement"]["r"] == sorted(range(6), key=lambda p: -gaps[p])
    assert found["categories"]["x"]["means"]["r"]["a"] == pytest.approx(scores["r"][0, ::2].mean())
    assert not found["protocol"]


def test_costs_are_means_over_images() -> None:
    def entry(rows: int, backward: int) -> dict:
        ledger = {
            "equivalent_rows": rows + 2 * backward,
            "denoiser_rows": rows,
            "backward_rows": backward,
            "cfg_rows": 2,
            "decodes": 1,
            "reward_calls": 4,
            "seconds": {"total": 0.5},
            "peak_bytes": rows,
        }
        return {"ledger": ledger}

    (found,) = analysis.costs([[entry(20, 0), entry(40, 10)]], plain_rows=20)
    assert found["multiple"] == 2.0 and found["denoiser_rows"] == 30.0
    assert found["peak_bytes"] == 40 and found["seconds"] == 0.5


def test_spread_is_the_mean_pairwise_distance() -> None:
    features = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    units = torch.nn.functional.normalize(features.double(), dim=-1)
    for prompt, found in enumerate(spread(features)):
        pairs = [
            1 - float(units[prompt, i] @ units[prompt, j])
            for i in range(4)
            for j in range(4)
            if i != j
        ]
        assert found == pytest.approx(sum(pairs) / len(pairs))
    assert spread(features[:, :1].expand(-1, 4, -1)) == pytest.approx([0, 0, 0], abs=1e-9)


def test_pixel_spread_by_hand() -> None:
    images = torch.zeros(4, 3, 16, 16)
    images[1] = 1.0
    images[3, :, :8] = 0.5
    found = pixel_spread(images, seeds=2)
    assert found == pytest.approx([1.0, (0.5**2 / 2) ** 0.5])


@given(st.integers(1, 3000), st.integers(1, 50))
def test_blocks_cover_prompts_once(prompts: int, seeds: int) -> None:
    found = blocks(prompts, seeds)
    assert [p for block in found for p in block] == list(range(prompts))
    assert all(len(block) * seeds <= max(BLOCK, seeds) for block in found)


def point(x: float, mean: float) -> Point:
    return Point("p", x, mean, mean - 0.02, mean + 0.02, 0)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_the_frontier_has_no_better(pairs: list[tuple[int, int]]) -> None:
    points = [point(x, y) for x, y in pairs]
    best = frontier(points)
    for p in points:
        beaten = any(
            q.x <= p.x and q.mean >= p.mean and (q.x, q.mean) != (p.x, p.mean) for q in points
        )
        assert beaten or any((q.x, q.mean) == (p.x, p.mean) for q in best)


def test_numbers_for_people() -> None:
    assert text_of(-0.0004, 3) == "0.000" and text_of(0.1234, 2, True) == "+0.12"
    assert text_of(-1.5, 1) == "−1.5" and text_of(-0.00001, 2, True) == "0.00"
    assert digits_for([point(1, 0.5)]) == 3
    assert digits_for([Point("p", 1, 2.0, None, None, 0)]) == 3
