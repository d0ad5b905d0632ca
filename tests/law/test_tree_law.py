"""`Tree` against exact laws: Gaussian data with an exact denoiser, and an optimum hidden in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from toy import SCHEDULERS, Mixture, Toy, gaussian_chain, on_points, points, run

from steer.methods import BestOfN, Tree
from steer.methods.particles.tree_nodes import Grove, Node
from steer.pipeline.guided import guided


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
GAUSSIAN = Mixture([[0.7]], [0.5])
TWO = Mixture([[-2.0], [1.0]], [0.5, 0.4], [0.3, 0.7])
STEPS = 6
TREES = 16  # independent ones, pooled


def first(x: Tensor) -> Tensor:
    return x[:, 0]


def leaves(groves: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Points of all leaves, and the law's weights on them."""
    x = np.array([float(leaf.x.flatten()[0]) for grove in groves for leaf in grove.leaves])
    shares = np.concatenate([grove.log_shares().exp().numpy() for grove in groves])
    return x, shares / len(groves)


def distance(groves: list[Any], cdf: Any) -> float:
    """Kolmogorov-Smirnov distance of the weighted leaves from a law."""
    x, weights = leaves(groves)
    order = np.argsort(x)
    above, exact = np.cumsum(weights[order]), cdf(x[order])
    return float(max((above - exact).max(), (exact - above + weights[order]).max()))


def trees(method: Tree, scheduler: str, mixture: Mixture, reward: Any, steps: int = STEPS) -> Any:
    found, _ = run(
        Toy(mixture, scheduler),
        method.grow,
        method.populations[0],
        on_points(reward),
        prompt=[""] * TREES,
        steps=steps,
    )
    return found


def dts(iterations: int, lam: float, **options: Any) -> Tree:
    """DTS on the reward's own scale."""
    settings = {"policy": "sample", "standardise": False, "batch": 8, "at": (0.5,)}
    return Tree(iterations, lam=lam, **{**settings, **options})


@pytest.mark.sample(1)
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_the_tilted_law_is_approached(scheduler: str) -> None:
    """More than a standard deviation away: ever closer as iterations grow."""
    lam = 4.0
    mean, variance = gaussian_chain(GAUSSIAN, SCHEDULERS[scheduler](), STEPS)
    law = stats.norm(mean + lam * variance, variance**0.5)
    methods = [dts(iterations, lam) for iterations in (2, 32, 512)]
    few, some, many = (distance(trees(m, scheduler, GAUSSIAN, first), law.cdf) for m in methods)
    assert many < 0.06
    assert many < 0.7 * some < 0.5 * few


def test_choices_that_ignore_the_rewards_leave_the_evidence_unbiased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Soft values of trees of four branching levels: E[exp(lam v(root))] = E[exp(lam r)] then."""

    def uniform(self: Grove, node: Node, *_: Any) -> Node:
        return self._random.choice(node.children)

    monkeypatch.setattr(Grove, "_choose", uniform)
    lam = 3.0
    mean, variance = gaussian_chain(GAUSSIAN, SCHEDULERS["ddim"](), STEPS)
    options = {"batch": 4, "at": (0.2, 0.4, 0.6, 0.8), "widen": (1.0, 0.5)}
    method, values = dts(24, lam, **options), []
    for seed in range(4):
        found, _ = run(
            Toy(GAUSSIAN), method.grow, 4, on_points(first), prompt=[""] * 60, steps=6, seed=seed
        )
        values += [grove.root.energy for grove in found]
    ratios = np.exp(np.array(values) - lam * mean - lam**2 * variance / 2)
    error = ratios.std() / len(ratios) ** 0.5
    assert error < 0.06
    assert ratios.mean() == pytest.approx(1, abs=3.5 * error)


def test_a_tilted_mixture() -> None:
    """Two modes, and a reward that prefers the small one."""

    def reward(x: Tensor) -> Tensor:
        return -((x[:, 0] + 1.5) ** 2) / 2

    found = trees(dts(64, 1.0), "ddim", TWO, reward, steps=40)
    law, plain = TWO.tilted(reward), TWO.tilted(lambda x: 0 * x[:, 0])
    assert distance(found, law.cdf) < 0.12
    assert distance(found, plain.cdf) > 0.35


def test_samples_follow_the_shares() -> None:
    """One image per tree, drawn from the root down: about the tilted law's, not the best ones."""
    lam, count = 3.0, 120
    mean, variance = gaussian_chain(GAUSSIAN, SCHEDULERS["ddim"](), STEPS)
    method = dts(96, lam, choose="sample")
    out = guided(Toy(GAUSSIAN), on_points(first), method=method, lane_width=8)(
        [""] * count,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
    )
    x = points(out.images).flatten().numpy()
    assert stats.kstest(x, stats.norm(mean + lam * variance, variance**0.5).cdf).pvalue > 0.01
    assert stats.kstest(x, stats.norm(mean, variance**0.5).cdf).pvalue < 1e-6


@pytest.mark.parametrize("policy", ["sample", "search"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_a_constant_reward_leaves_the_law_unchanged(policy: Any, scheduler: str) -> None:
    method = Tree(32, policy=policy, batch=8, lam=5.0)
    found = trees(method, scheduler, GAUSSIAN, lambda x: 0 * x[:, 0] + 0.3)
    mean, variance = gaussian_chain(GAUSSIAN, SCHEDULERS[scheduler](), STEPS)
    assert distance(found, stats.norm(mean, variance**0.5).cdf) < 0.15
    for grove in found:
        assert grove.root.energy == 0


def test_a_planted_optimum_is_found() -> None:
    """A narrow peak in 3-D, far from the mean: at the same rows closer to it than best of N."""
    data = Mixture([[0.0, 0.0, 0.0]], [1.0])
    peak = torch.tensor([1.5, -1.2, 1.0])

    def reward(x: Tensor) -> Tensor:
        return -((x - peak) ** 2).sum(1)

    def found(method: Any, count: int) -> Tensor:
        steered = guided(Toy(data), on_points(reward, 3), method=method, lane_width=4)
        generator = torch.Generator().manual_seed(0)
        out = steered([""] * count, num_inference_steps=10, generator=generator)
        return torch.tensor(out.rewards)

    gain = found(Tree(compute=24, at=(0.4, 0.6, 0.8)), 24) - found(BestOfN(24), 24)
    assert float(gain.mean()) > 3 * float(gain.std()) / len(gain) ** 0.5
    assert float(found(Tree(800, at=(0.4, 0.6, 0.8)), 2).min()) > -0.1
