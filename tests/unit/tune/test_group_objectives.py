"""Losses of groups and steps against exhaustive sums, DPO's own cases, and least squares; inversion
against constant noise; all in float64."""

from __future__ import annotations

import math
from itertools import pairwise, permutations
from typing import Any

import pytest
import torch
from families import seeded
from torch import Tensor
from torch.nn import functional as F

from steer.core.types import Step
from steer.tune import TuneError
from steer.tune.group_objectives import (
    centred_regression,
    early_steps,
    list_mle,
    rank_dpo,
    step_dpo,
    widest_steps,
)
from steer.tune.inversion import inverted_noise


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def test_ranks_are_weighted_by_what_an_exchange_would_cost() -> None:
    """Delta is the change of discounted gain when two images change places, for all pairs."""
    reward, scores = drawn(1, 4), torch.tensor([[0.2, 0.9, 0.4, 0.7]], dtype=torch.float64)
    order = [1, 3, 2, 0]

    def gain(ranked: list[int]) -> float:
        return sum(2 ** scores[0, i].item() / math.log(2 + k) for k, i in enumerate(ranked))

    expected = 0.0
    for a, i in enumerate(order):
        for j in order[a + 1 :]:
            swapped = [{i: j, j: i}.get(k, k) for k in order]
            cost = gain(order) - gain(swapped)
            expected -= cost * F.logsigmoid(reward[0, i] - reward[0, j]).item()
    assert rank_dpo(reward, scores).item() == pytest.approx(expected, rel=1e-12)


def test_of_two_images_ranks_and_lists_are_dpo() -> None:
    reward, scores = drawn(3, 2), torch.tensor([[1.0, 0.0]]).double().expand(3, 2)
    dpo = -F.logsigmoid(reward[:, 0] - reward[:, 1])
    torch.testing.assert_close(list_mle(reward, scores), dpo)
    delta = 1 / math.log(2) - 1 / math.log(3)
    torch.testing.assert_close(rank_dpo(reward, scores), delta * dpo)
    assert rank_dpo(reward, torch.zeros(3, 2)).tolist() == [0, 0, 0]


def test_lists_are_probabilities_of_orders() -> None:
    reward = drawn(1, 4)
    total = 0.0
    for order in permutations(range(4)):
        scores = torch.tensor([[-float(order.index(i)) for i in range(4)]])
        total += math.exp(-list_mle(reward, scores).item())
    assert total == pytest.approx(1, rel=1e-12)


def test_early_steps_are_trained_more_often() -> None:
    odds = early_steps(5, 0.9).tolist()
    assert sum(odds) == pytest.approx(1)
    assert all(b / a == pytest.approx(0.9) for a, b in pairwise(odds))
    assert early_steps(4, 1.0).tolist() == [0.25] * 4


def test_centred_rewards_are_fitted_by_least_squares() -> None:
    """Linear rewards r = X w: the optimum is that of the centred normal equations."""
    x, scores = drawn(1, 8, 3), drawn(1, 8, seed=1)
    centred = x[0] - x[0].mean(0)
    w = torch.linalg.lstsq(centred, (scores[0] - scores[0].mean())[:, None]).solution[:, 0]
    w.requires_grad_()
    loss = centred_regression((x @ w) + 5.0, scores)
    assert torch.autograd.grad(loss.sum(), w)[0].abs().max() < 1e-12
    torch.testing.assert_close(centred_regression(scores + 3, scores), torch.zeros(1).double())


def test_steps_pull_inside_the_clip_only() -> None:
    won, lost = (torch.tensor(x, dtype=torch.float64, requires_grad=True)
                 for x in ([0.01, 0.5], [-0.02, -0.5]))  # fmt: skip
    loss = step_dpo(won, lost, 10.0, 0.1)
    p = 1 / (1 + math.exp(-0.3))
    slopes = torch.autograd.grad(loss.sum(), [won, lost])
    assert slopes[0].tolist() == pytest.approx([-10 * (1 - p), 0])
    assert slopes[1].tolist() == pytest.approx([10 * (1 - p), 0])
    floor = -F.logsigmoid(torch.tensor(10 * math.log(1.1 / 0.9), dtype=torch.float64)).item()
    assert loss.tolist() == pytest.approx([-math.log(p), floor])


def test_only_steps_that_differ_are_compared() -> None:
    scores = torch.tensor([[0.0, 2.0, -1.0], [0.1, 0.0, 0.05]])
    best, worst, kept = widest_steps(scores, 0.3)
    assert best.tolist() == [1, 0] and worst.tolist() == [2, 1] and kept.tolist() == [True, False]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_inversion_finds_the_noise_that_a_denoiser_names(prediction: Any) -> None:
    """A denoiser that sees the noise c at all levels: then x_t differs from alpha x0 by c alone."""
    angles, c, clean = [0.1, 0.5, 0.9, 1.3], drawn(2, 3), drawn(2, 3, seed=1)
    grid = [
        Step(i, 4, torch.tensor(float(i)), math.cos(a), math.sin(a), 1.0, 0.0, prediction)
        for i, a in enumerate(angles)
    ]
    asked: list[float] = []

    def denoise(x: Tensor, step: Step) -> Tensor:
        asked.append(step.sigma)
        x0 = (x - step.sigma * c) / step.alpha
        return c if prediction == "epsilon" else step.alpha * c - step.sigma * x0

    x, noise = inverted_noise(clean, grid, denoise)
    share = 1 - math.tan(0.1) / math.tan(1.3)  # what the first level's own noise leaves out
    torch.testing.assert_close(noise, share * c)
    torch.testing.assert_close(x, math.cos(1.3) * clean + math.sin(1.3) * noise)
    assert asked == [math.sin(a) for a in angles[:-1]]
    with pytest.raises(TuneError, match="from the least noise to the most"):
        inverted_noise(clean, grid[::-1], denoise)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda x: rank_dpo(x, x[:1]), r"reward \(2, 3\) and scores \(1, 3\): both must be"),
        (lambda x: step_dpo(x, x, clip=1.0), r"beta=10\.0, clip=1\.0"),
        (lambda x: widest_steps(x, 1.0), r"gap=1\.0: must be in \[0, 1\)"),
        (lambda x: early_steps(0), r"count=0, discount=0\.9"),
    ],
)
def test_bad_settings_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(TuneError, match=sentence):
        make(torch.zeros(2, 3))
