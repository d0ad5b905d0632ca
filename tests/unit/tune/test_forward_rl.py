"""NFT and AWM against their papers' forms, their optima, and each other, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from families import seeded
from torch import Tensor

from steer.core.types import Step
from steer.tune import TuneError
from steer.tune.forward_rl import awm, nft, reward_weighted
from steer.tune.goal import Errors, Goal
from steer.tune.goals import GOALS, Advantaged
from steer.tune.noising import Noising
from steer.tune.objectives import squared_error


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def terms(v: Tensor, v0: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return squared_error(v, u), squared_error(v0, u), squared_error(v, v0)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_nft_is_the_papers_loss_over_beta_without_its_constant(beta: float) -> None:
    v, v0, u = (drawn(6, 3, 4, seed=k) for k in range(3))
    r = torch.linspace(0, 1, 6, dtype=torch.float64)
    positive = squared_error(beta * v + (1 - beta) * v0, u)
    negative = squared_error((1 + beta) * v0 - beta * v, u)
    paper = r * positive + (1 - r) * negative
    found = nft(*terms(v, v0, u), 2 * r - 1, beta)
    torch.testing.assert_close(found, (paper - squared_error(v0, u)) / beta, rtol=1e-12, atol=1e-12)


def test_the_gradient_at_the_old_policy_is_free_of_beta_and_zero_for_average_rows() -> None:
    v0, u, a = drawn(5, 8), drawn(5, 8, seed=1), torch.linspace(-1, 1, 5, dtype=torch.float64)
    slopes = []
    for beta in (0.1, 1.0):
        v = v0.clone().requires_grad_()
        slopes.append(torch.autograd.grad(nft(*terms(v, v0, u), a, beta).sum(), v)[0])
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slopes[0], a[:, None] * 2 * (v0 - u) / 8, rtol=1e-12, atol=1e-14)
    assert float(slopes[0][2].abs().max()) == 0


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_the_optimum_moves_x0_by_the_covariance_whatever_is_predicted(prediction: str) -> None:
    """At one x_t: x0* = x0_old + mean(a (x0 - x0_old)) / beta, found by a solver."""
    alpha, sigma = (0.7, 0.3) if prediction == "flow" else (0.8, 0.6)
    grid = (torch.tensor([c], dtype=torch.float64) for c in (alpha, sigma, 500.0))
    noising = Noising(prediction, *grid)
    x, x0, old, a, beta = drawn(1, 4), drawn(7, 4, seed=1), drawn(1, 4, seed=2), drawn(7), 0.5
    index = torch.zeros(7, dtype=torch.long)

    def predicted(clean: Tensor) -> Tensor:
        return noising.target(clean, (x - alpha * clean) / sigma, index[: len(clean)])

    v0, v = predicted(old), predicted(old).clone().requires_grad_()
    solver = torch.optim.LBFGS([v], lr=1.0, max_iter=50, tolerance_grad=1e-12, tolerance_change=0)

    def closure() -> Any:
        solver.zero_grad()
        rows = (t.expand(7, 4) for t in (v, v0))
        loss = nft(*terms(*rows, predicted(x0)), a, beta).mean()
        loss.backward()
        return loss

    solver.step(closure)
    step = Step(0, 1, 500.0, alpha, sigma, 1.0, 0.0, prediction)  # type: ignore[arg-type]
    expected = old + (a[:, None] * (x0 - old)).mean(0) / beta
    torch.testing.assert_close(step.x0(x, v.detach()), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", [nft, awm])
def test_a_constant_field_in_a_groups_targets_does_not_matter_to_centred_advantages(
    loss: Any,
) -> None:
    """So what all samples share, such as their sampler's guidance, is not learned."""
    a = drawn(6)
    a -= a.mean()
    v0, u, field = drawn(1, 8, seed=1), drawn(6, 8, seed=2), 10 * drawn(1, 8, seed=3)
    slopes = []
    for target in (u, u + field):
        v = v0.clone().requires_grad_()
        found = loss(*terms(v.expand(6, 8), v0.expand(6, 8), target), a).mean()
        slopes.append(torch.autograd.grad(found, v)[0])
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)


def test_awm_on_policy_is_a_times_the_errors_gradient_and_stops_at_the_clip() -> None:
    v0, u, a = drawn(4, 8), drawn(4, 8, seed=1), torch.tensor([1.0, -1.0, 0.0, 0.5]).double()
    v = v0.clone().requires_grad_()
    found = awm(*terms(v, v0, u), a)
    assert torch.equal(found.detach(), -a)
    slope = torch.autograd.grad(found.sum(), v)[0]
    torch.testing.assert_close(slope, a[:, None] * 2 * (v0 - u) / 8, rtol=1e-12, atol=1e-14)
    error = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    far = awm(error, error.detach() + 2, torch.zeros(2), torch.tensor([1.0, -1.0]), clip=0.5)
    assert torch.autograd.grad(far.sum(), error)[0].tolist() == pytest.approx([0, -(math.e**2)])


@pytest.mark.parametrize("leash", [0.1, 2.0])
def test_weighted_errors_end_between_the_weighted_mean_and_the_reference(leash: float) -> None:
    """At one x_t: v* = (mean(w u) + alpha v_ref) / (mean w + alpha), where the slope is zero."""
    before, u, a = drawn(1, 4), drawn(7, 4, seed=1), drawn(7, seed=2)
    w = (0.5 * a).exp()
    best = ((w[:, None] * u).mean(0) + leash * before) / (w.mean() + leash)
    v = best.clone().requires_grad_()
    error, _, change = terms(v.expand(7, 4), before.expand(7, 4), u)
    loss = reward_weighted(error, change, a, 0.5, leash).mean()
    assert float(torch.autograd.grad(loss, v)[0].abs().max()) < 1e-12
    assert torch.equal(reward_weighted(error, change, a, 0.0, 0.0), error)


@pytest.mark.parametrize("name", sorted(GOALS))
def test_at_the_start_all_objectives_pull_along_the_rows_own_error(name: str) -> None:
    """Rows' gradients are the errors' own, with factors of the signs of their labels."""
    goal: Goal = GOALS[name]()
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
    advantages = torch.tensor([0.5, 0.1, -0.2, -0.4]).double()
    v0, u = drawn(4, 8), drawn(4, 8, seed=1)
    v = v0.clone().requires_grad_()
    weights = advantages if isinstance(goal, Advantaged) else torch.ones(4).double()
    weights = weights[:2] if goal.pairs else weights
    error, old, change = terms(v, v0, u)
    outcome = goal.loss(Errors(error, old, labels, weights, change=change))
    slope = torch.autograd.grad(outcome.loss.sum(), v)[0]
    factor = (slope / (2 * (v0 - u) / 8)).mean(1)
    torch.testing.assert_close(slope, factor[:, None] * 2 * (v0 - u) / 8, rtol=1e-9, atol=1e-12)
    if name in ("nft", "awm"):
        torch.testing.assert_close(factor, advantages, rtol=1e-12, atol=1e-14)
    elif name == "mapo":  # which begins at the errors themselves: here both pairs are won
        assert factor.tolist() == pytest.approx([1, 1, 0, 0], abs=1e-6)
    elif name == "orw":
        torch.testing.assert_close(factor, (5 * advantages).exp(), rtol=1e-12, atol=1e-14)
    elif name in ("sft", "csft"):
        assert factor.tolist() == pytest.approx([1] * 4)
    else:
        assert (factor[:2] > 0).all() and (factor[2:] < 0).all()
    if outcome.correct is not None:
        assert outcome.correct.tolist() == [0.5] * len(outcome.correct)


def test_settings_out_of_range_are_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(TuneError, match="beta=0: must be positive"):
        nft(one, one, one, one, 0)
    with pytest.raises(TuneError, match=r"clip=0, leash=1\.0"):
        awm(one, one, one, one, clip=0)
    with pytest.raises(TuneError, match=r"clip=1\.0, leash=-1"):
        awm(one, one, one, one, leash=-1)
    with pytest.raises(TuneError, match=r"tau=-1, leash=1\.0: must not be negative"):
        reward_weighted(one, one, one, tau=-1)
    with pytest.raises(TuneError, match=r"tau=5\.0, leash=-1"):
        reward_weighted(one, one, one, leash=-1)
