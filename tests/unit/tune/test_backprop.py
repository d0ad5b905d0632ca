"""Cuts of reward backpropagation against the matrices of a linear denoiser, in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import seeded
from torch import Tensor

from steer.core.ddim import ddim
from steer.core.types import Move, Step
from steer.tune import TuneError
from steer.tune.backprop import (
    Cut,
    aligned,
    last_steps,
    noised_image,
    one_step,
    renoised_last,
    reward_loss,
    run,
    spread_steps,
)


T, D = 5, 3
ANGLES = torch.linspace(1.4, 0.0, T + 1, dtype=torch.float64).tolist()
GRID = [
    Step(
        i, T, torch.tensor(float(T - i)), math.cos(a), math.sin(a), math.cos(b), math.sin(b),
        "v_prediction",
    )
    for i, (a, b) in enumerate(pairwise(ANGLES))
]  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def no_noise(position: int, x: Tensor) -> Tensor:
    raise AssertionError("a deterministic run draws nothing")


def move(position: int, step: Step, x: Tensor, x0: Tensor) -> Move:
    return ddim(step, x, x0)


class Linear:
    """v = K x with one K at all steps, and the terms of the reward's gradient by step."""

    def __init__(self) -> None:
        self.k = drawn(D, D).requires_grad_()
        self.g, self.start = drawn(D, seed=1), drawn(1, D, seed=2)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        return x @ self.k.T

    def gradient(self, cut: Cut) -> Tensor:
        """Of g . x at the end, by the loop that is tested."""
        end = run(GRID, self.start, self, cut, move, no_noise)
        return torch.autograd.grad((end @ self.g).sum(), self.k)[0]

    def terms(self, jacobians: bool) -> list[Tensor]:
        """d(g . x_T)/dK by step: x' = cos(d) x - sin(d) K x, by products of matrices."""
        k, x, points = self.k.detach(), self.start[0], []
        steps = [(math.cos(a - b), math.sin(a - b)) for a, b in pairwise(ANGLES)]
        for c, s in steps:
            points.append(x)
            x = c * x - s * (k @ x)
        pull, found = self.g, []
        for (c, s), point in zip(reversed(steps), reversed(points), strict=True):
            found.append(-s * torch.outer(pull, point))
            pull = c * pull - s * (k.T @ pull) * jacobians
        return found[::-1]


@pytest.mark.parametrize("last", [1, 2, T])
def test_the_last_steps_are_the_last_terms_of_the_gradient(last: int) -> None:
    linear = Linear()
    expected = sum(linear.terms(jacobians=True)[T - last :])
    torch.testing.assert_close(linear.gradient(last_steps(T, last)), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("trained", "chosen"), [(2, [0, 2]), (3, [0, 1, 3]), (T, [0, 1, 2, 3, 4])])
def test_spread_steps_leave_the_denoisers_jacobians_out(trained: int, chosen: list[int]) -> None:
    linear, cut = Linear(), spread_steps(T, trained)
    assert sorted(cut.trained) == chosen
    terms = linear.terms(jacobians=False)
    expected = sum(terms[i] for i in chosen)
    torch.testing.assert_close(linear.gradient(cut), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("position", [0, 3, T - 1])
def test_one_step_stops_there_and_differentiates_its_own_x0(position: int) -> None:
    linear = Linear()
    cut = one_step(T, position)
    x = linear.start[0]
    k = linear.k.detach()
    for a, b in list(pairwise(ANGLES))[:position]:
        x = math.cos(a - b) * x - math.sin(a - b) * (k @ x)
    a = ANGLES[position]
    found = run(GRID, linear.start, linear, cut, move, no_noise)
    expected = math.cos(a) * x - math.sin(a) * (k @ x)
    torch.testing.assert_close(found[0].detach(), expected, rtol=1e-10, atol=1e-14)
    slope = torch.autograd.grad((found @ linear.g).sum(), linear.k)[0]
    torch.testing.assert_close(slope, -math.sin(a) * torch.outer(linear.g, x))


def test_noise_is_a_constant_of_the_gradient() -> None:
    """With DDIM at eta = 1 and given noise, against finite differences."""
    linear, cut = Linear(), last_steps(T, T)
    noises = drawn(T, 1, D, seed=3)

    def end(k: Tensor) -> Tensor:
        def noisy(position: int, step: Step, x: Tensor, x0: Tensor) -> Move:
            return ddim(step, x, x0, 1.0 if 0 < position < T - 1 else 0.0)

        def denoise(x: Tensor, step: Step) -> Tensor:
            return x @ k.T

        x = run(GRID, linear.start, denoise, cut, noisy, lambda at, x: noises[at])
        return (x @ linear.g).sum()

    assert torch.autograd.gradcheck(end, [linear.k])


def test_fresh_noisings_of_the_last_step_are_each_their_own_run() -> None:
    linear, noises = Linear(), drawn(4, 2, D, seed=4)
    step, clean = GRID[-1], drawn(2, D, seed=5).requires_grad_()
    found = renoised_last(step, clean, linear, lambda k: noises[k], 4)
    for row in range(2):
        for k in range(4):
            x = step.alpha * clean[row] + step.sigma * noises[k, row]
            expected = step.alpha * x - step.sigma * (linear.k @ x)
            torch.testing.assert_close(found[4 * row + k], expected)
    assert torch.autograd.grad(found.sum(), clean, allow_unused=True, retain_graph=True)[0] is None
    assert float(torch.autograd.grad(found.sum(), linear.k)[0].abs().max()) > 0


FLOW = [
    Step(i, 4, torch.tensor(1000 * s), 1 - s, s, 1.0, 0.0, "flow")
    for i, s in enumerate((1.0, 0.7, 0.4, 0.05))
]


@pytest.mark.parametrize("step", FLOW, ids=lambda step: f"{step.sigma:g}")
def test_alignment_of_flow_is_the_papers(step: Step) -> None:
    """x0 + (s - s') / (1 - s') (u - v), and its gradient in v."""
    clean, noise = drawn(3, D), drawn(3, D, seed=1)
    v, pull = drawn(3, D, seed=2).requires_grad_(), drawn(3, D, seed=3)
    found = aligned(step, clean, lambda x, at: v, noise, 0.1)
    below = max(step.sigma - 0.1, 0.0)
    gain = (step.sigma - below) / (1 - below)
    torch.testing.assert_close(found, clean + gain * (noise - clean - v))
    (grad,) = torch.autograd.grad((found * pull).sum(), v)
    torch.testing.assert_close(grad, -gain * pull)


@pytest.mark.parametrize("step", GRID, ids=lambda step: f"{step.sigma:.2f}")
@pytest.mark.parametrize("jump", [0.05, 0.2])
def test_alignment_is_a_step_down_with_the_known_noise_taken_out(step: Step, jump: float) -> None:
    clean, noise, v = drawn(3, D), drawn(3, D, seed=1), drawn(3, D, seed=2)
    share = step.sigma / (step.alpha + step.sigma)
    below = max(share - jump, 0.0)
    size = math.hypot(below, 1 - below)
    a, s = (1 - below) / size, below / size  # the same noise share, variance-preserving
    x = step.alpha * clean + step.sigma * noise
    down = a * step.x0(x, v) + s * step.noise(x, step.x0(x, v))
    found = aligned(step, clean, lambda x, at: v, noise, jump)
    torch.testing.assert_close(found, (down - s * noise) / a)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_denoiser_that_is_right_leaves_the_sample_alone(prediction: Any) -> None:
    clean, noise = drawn(3, D), drawn(3, D, seed=1)
    for step in GRID:
        exact = replace(step, prediction=prediction)

        def right(x: Tensor, at: Step) -> Tensor:
            v = at.alpha * noise - at.sigma * clean
            return {"epsilon": noise, "sample": clean, "v_prediction": v}[at.prediction]

        torch.testing.assert_close(aligned(exact, clean, right, noise), clean)


def test_alignment_refuses_what_it_cannot_do() -> None:
    with pytest.raises(TuneError, match=r"jump=0\.0: must be above 0"):
        aligned(GRID[0], drawn(1, D), lambda x, at: x, drawn(1, D), 0.0)
    with pytest.raises(TuneError, match="no noise to take out"):
        aligned(replace(GRID[0], sigma=0.0), drawn(1, D), lambda x, at: x, drawn(1, D))


VE = Step(0, 1, torch.tensor(500.0), 1.0, 3.0, 1.0, 0.0, "epsilon")
SIZE = math.sqrt(10.0)
NOISED: list[tuple[Step, tuple[float, float], float]] = [
    (replace(GRID[1], prediction="epsilon"), (0.0, 1.0), -math.tan(ANGLES[1])),
    (replace(GRID[1], prediction="sample"), (1.0, 0.0), 1.0),
    (GRID[1], (-math.sin(ANGLES[1]), math.cos(ANGLES[1])), -math.sin(ANGLES[1])),
    (FLOW[1], (-1.0, 1.0), -0.7),
    (VE, (0.0, 1.0), -3.0),
    (replace(VE, prediction="v_prediction"), (-3 / SIZE, 1 / SIZE), -3 / SIZE),
]
"""A step, what of clean and noise a right denoiser answers there, and the slope of x0 in it."""


@pytest.mark.parametrize(
    ("step", "right", "slope"), NOISED, ids=lambda x: x.prediction if isinstance(x, Step) else ""
)
def test_a_noised_image_has_the_calls_x0_and_its_error(
    step: Step, right: tuple[float, float], slope: float
) -> None:
    clean, noise, away = drawn(3, D), drawn(3, D, seed=1), drawn(3, D, seed=2)
    seen: list[Tensor] = []

    def wrong(x: Tensor, at: Step) -> Tensor:
        seen.append(x)
        return right[0] * clean + right[1] * noise + off

    off = away.clone().requires_grad_()
    found, error = noised_image(step, clean, wrong, noise)
    torch.testing.assert_close(seen, [step.alpha * clean + step.sigma * noise])
    torch.testing.assert_close(found, clean + slope * away)
    torch.testing.assert_close(error, away.square().mean(1))
    pull = drawn(3, D, seed=3)
    (grad,) = torch.autograd.grad((found * pull).sum() + error.sum(), off)
    torch.testing.assert_close(grad, slope * pull + 2 * away / D)


def test_a_ceiling_leaves_good_images_alone() -> None:
    reward = torch.tensor([0.5, 3.0], requires_grad=True)
    assert reward_loss(reward).tolist() == [-0.5, -3.0]
    loss = reward_loss(reward, 2.0)
    assert loss.tolist() == [1.5, 0.0]
    assert torch.autograd.grad(loss.sum(), reward)[0].tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: last_steps(5, 6), "last=6: must be from 1 to the 5 steps"),
        (lambda: spread_steps(5, 0), "trained=0: must be from 1 to the 5 steps"),
        (lambda: one_step(5, 5), "position=5: must be from 0 to 4"),
    ],
)
def test_cuts_outside_the_run_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(TuneError, match=sentence):
        make()
