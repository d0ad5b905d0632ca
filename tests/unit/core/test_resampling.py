"""Resampling: unbiased, per prompt, and exact about weights; against counts over many draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from steer.core.resampling import (
    RESAMPLERS,
    SELECTORS,
    ess,
    greedy,
    log_mean_exp,
    normalise,
    top_k,
    without_replacement,
)


LOGS = torch.tensor([[0.3, -1.2, 2.0, -0.4, 0.9], [0.0, 0.0, -math.inf, 5.0, 4.9]])
WEIGHTS = st.lists(st.floats(-30, 30) | st.just(-math.inf), min_size=1, max_size=12)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def offspring(ancestors: Tensor, particles: int) -> Tensor:
    return (
        torch.zeros(len(ancestors), particles)
        .long()
        .scatter_add(1, ancestors, torch.ones_like(ancestors))
    )


@pytest.mark.parametrize("name", RESAMPLERS)
@pytest.mark.parametrize("count", [5, 3, 8])
def test_children_are_unbiased(name: str, count: int) -> None:
    """Mean offspring over 20,000 draws, standard error at most 0.012."""
    weights = np.exp(LOGS.double().numpy())
    weights = weights / weights.sum(1, keepdims=True)
    many = LOGS[:, None].expand(-1, 20_000, -1).flatten(0, 1)
    counts = offspring(RESAMPLERS[name](many, count, seeded(0)), 5).double().unflatten(0, (2, -1))
    torch.testing.assert_close(
        counts.mean(1), torch.from_numpy(count * weights), rtol=0, atol=0.05 if count > 5 else 0.04
    )
    assert (counts[1, :, 2] == 0).all()  # a weight of zero has no children


@pytest.mark.parametrize("name", ["systematic", "ssp"])
@settings(deadline=None, max_examples=200)
@given(logs=WEIGHTS, count=st.integers(1, 15), seed=st.integers(0, 2**31))
def test_children_are_rounded_expectations(
    name: str, logs: list[float], count: int, seed: int
) -> None:
    tensor = torch.tensor([logs])
    children = offspring(RESAMPLERS[name](tensor, count, seeded(seed)), len(logs)).double()
    expected = count * normalise(tensor)
    assert (children >= (expected - 1e-6).floor()).all()
    assert (children <= (expected + 1e-6).ceil()).all()


@pytest.mark.parametrize("name", RESAMPLERS)
@settings(deadline=None, max_examples=200)
@given(
    logs=WEIGHTS,
    count=st.integers(1, 15),
    seed=st.integers(0, 2**31),
    shift=st.floats(-500, 500),
)
def test_invariants(name: str, logs: list[float], count: int, seed: int, shift: float) -> None:
    tensor = torch.tensor([logs], dtype=torch.float64)
    found = RESAMPLERS[name](tensor, count, seeded(seed))
    assert found.shape == (1, count) and found.dtype == torch.int64
    assert int(found.min()) >= 0 and int(found.max()) < len(logs)
    if any(map(math.isfinite, logs)):
        assert all(math.isfinite(logs[i]) for i in found[0].tolist())
    moved = RESAMPLERS[name](tensor + shift, count, seeded(seed))
    assert torch.equal(moved, found)
    assert 1 - 1e-9 <= float(ess(tensor)) <= len(logs) + 1e-9
    torch.testing.assert_close(ess(tensor), ess(tensor + shift))


@pytest.mark.parametrize("name", RESAMPLERS)
def test_a_prompt_draws_what_it_draws_alone(name: str) -> None:
    together = RESAMPLERS[name](LOGS, 5, [seeded(1), seeded(2)])
    alone = [RESAMPLERS[name](LOGS[i : i + 1], 5, [seeded(i + 1)])[0] for i in (0, 1)]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("name", RESAMPLERS)
def test_degenerate_weights(name: str) -> None:
    one = torch.tensor([[-math.inf, 3.0, -math.inf]])
    assert RESAMPLERS[name](one, 4, seeded(0)).tolist() == [[1, 1, 1, 1]]
    none = torch.full((1, 4), -math.inf)
    drawn = RESAMPLERS[name](none.repeat(3000, 1), 4, seeded(0))
    shares = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.02)
    huge = torch.tensor([[1e4, 1e4 - 1.0], [-1e4, -1e4 - 1.0]])
    first, second = RESAMPLERS[name](huge, 3, [seeded(0), seeded(0)])
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["systematic", "stratified", "ssp", "residual"])
def test_equal_weights_leave_everyone_in_place(name: str) -> None:
    for count in (1, 2, 3, 7, 10, 49):
        found = RESAMPLERS[name](torch.full((2, count), -3.7), count, seeded(count))
        assert found.tolist() == [list(range(count))] * 2


def test_quieter_schemes_are_quieter() -> None:
    """Variance of a weighted mean after resampling: every scheme beats independent draws."""
    values = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)
    many = LOGS[:1].expand(4000, -1)
    spread = {
        name: float(values[select(many, 5, seeded(3))].mean(1).var())
        for name, select in RESAMPLERS.items()
    }
    noisiest = spread.pop("multinomial")
    assert all(value < 0.75 * noisiest for value in spread.values())


def test_sizes_and_means_of_weights() -> None:
    logs = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3.0), 0.0, -math.inf, -math.inf]])
    torch.testing.assert_close(ess(logs), torch.tensor([4.0, 1.6], dtype=torch.float64))
    expected = torch.tensor([0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(log_mean_exp(logs), expected, rtol=0, atol=1e-7)
    assert log_mean_exp(torch.full((1, 3), -math.inf)).item() == -math.inf


def test_choices() -> None:
    logs = torch.tensor([[0.0, 2.0, 2.0, -1.0]])
    assert greedy(logs, 3).tolist() == [[1, 1, 1]]
    assert top_k(logs, 3).tolist() == [[1, 2, 0]]
    drawn = without_replacement(LOGS[:1].expand(20_000, -1), 2, seeded(0))
    assert (drawn[:, 0] != drawn[:, 1]).all()
    first = torch.bincount(drawn[:, 0], minlength=5) / 20_000
    torch.testing.assert_close(first.double(), normalise(LOGS[:1])[0], rtol=0, atol=0.015)
    after = drawn[drawn[:, 0] == 2, 1]  # given the first, the second is drawn among the rest
    rest = normalise(LOGS[:1].index_fill(1, torch.tensor([2]), -math.inf))[0]
    shares = torch.bincount(after, minlength=5) / len(after)
    torch.testing.assert_close(shares.double(), rest, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", SELECTORS)
def test_bad_input(name: str) -> None:
    select = SELECTORS[name]
    with pytest.raises(ValueError, match="NaN"):
        select(torch.tensor([[0.0, float("nan")]]), 1, None)
    with pytest.raises(ValueError, match=r"\(prompts, particles\)"):
        select(torch.zeros(3), 1, None)
    if name in ("top_k", "without_replacement"):
        with pytest.raises(ValueError, match="there are 2"):
            select(torch.zeros(1, 2), 3, None)
    if name in RESAMPLERS:
        with pytest.raises(ValueError, match="1 generators for 2 prompts"):
            select(torch.zeros(2, 2), 2, [seeded(0)])
