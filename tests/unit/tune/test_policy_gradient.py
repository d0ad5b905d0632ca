"""Policy gradients against densities, exact expectations and PPO's cases, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from families import seeded
from torch import Tensor
from torch.distributions import Normal

from steer.tune import TuneError
from steer.tune.policy_gradient import clipped_policy, log_ratio, mean_divergence


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def test_the_ratio_is_that_of_whole_latents_densities() -> None:
    mean, old, noise, std = drawn(4, 2, 3), drawn(4, 2, 3, seed=1), drawn(4, 2, 3, seed=2), 0.3
    x = old + std * noise
    densities = [Normal(m, std).log_prob(x).flatten(1).sum(1) for m in (mean, old)]
    torch.testing.assert_close(log_ratio(mean, old, noise, std), densities[0] - densities[1])
    assert log_ratio(old, old, noise, std).tolist() == [0.0] * 4


def test_the_ratio_keeps_its_digits_in_float32_where_densities_lose_them() -> None:
    """Log densities of large latents are large; their difference may be tiny."""
    old, noise, std = drawn(1, 65536).float(), drawn(1, 65536, seed=1).float(), 0.02
    mean = old + 1e-5 * drawn(1, 65536, seed=2).float()
    exact = float(log_ratio(mean.double(), old.double(), noise.double(), std))
    assert float(log_ratio(mean, old, noise, std)) == pytest.approx(exact, abs=1e-5)
    densities = [float(Normal(m, std).log_prob(old + std * noise).sum()) for m in (mean, old)]
    assert abs(densities[0] - densities[1] - exact) > 1e-3


def test_the_score_functions_gradient_is_the_gradient_of_the_expected_reward() -> None:
    """One Gaussian step and R = x^2: d/dm E[R] = 2 m, by quadrature over the noise."""
    points, heights = np.polynomial.hermite_e.hermegauss(20)
    nodes, weights = torch.from_numpy(points)[:, None], torch.from_numpy(heights)
    weights = weights / weights.sum()
    old, std = torch.full_like(nodes, 0.7), 0.5
    mean = old.clone().requires_grad_()
    reward = (old + std * nodes)[:, 0].square()
    loss = clipped_policy(log_ratio(mean, old, nodes, std), reward)
    slope = torch.autograd.grad((loss * weights).sum(), mean)[0].sum()
    assert -float(slope) == pytest.approx(2 * 0.7, rel=1e-12)


def test_far_from_the_old_policy_steps_pull_back_only() -> None:
    ratio = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = clipped_policy(ratio, advantage, 0.2)
    slope = torch.autograd.grad(loss.sum(), ratio)[0].tolist()
    up, down = math.exp(0.5), math.exp(-0.5)
    assert slope == pytest.approx([0, up, -down, 0])
    assert loss.tolist() == pytest.approx([-1.2, up, -down, 0.8])
    far = clipped_policy(torch.tensor([1e4]), torch.tensor([-1.0]))
    assert bool(torch.isfinite(far).all())


def test_the_divergence_is_that_of_two_gaussians() -> None:
    one, other, std = drawn(3, 5), drawn(3, 5, seed=1), 0.4
    exact = torch.distributions.kl_divergence(Normal(one, std), Normal(other, std)).sum(1)
    torch.testing.assert_close(mean_divergence(one, other, std), exact)


def test_steps_without_noise_have_no_density() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(TuneError, match="std=0: a deterministic step has no density"):
        log_ratio(x, x, x, 0)
    with pytest.raises(TuneError, match="std=0"):
        mean_divergence(x, x, 0)
    with pytest.raises(TuneError, match="clip=0: must be positive"):
        clipped_policy(torch.zeros(1), torch.zeros(1), 0)
