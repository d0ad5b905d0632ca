"""`PCNL` against closed forms: Gaussian targets, and filters that start from its noises."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from toy import SCHEDULERS, Mixture, Toy, gaussian_chain, on_points, run

from steer.core.resampling import log_mean_exp, normalise
from steer.core.types import Population
from steer.core.when import every
from steer.methods import PCNL, SMC, BestOfN
from steer.methods.noise.pcnl import log_ratio, propose


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
RHO = (1 - 0.5 / 4) / (1 + 0.5 / 4)
GAUSSIAN = Mixture([[0.7]], [0.5])


def first(x: Tensor) -> Tensor:
    return x[:, 0]


@pytest.mark.parametrize("drifts", ["exact", "capped", "none"])
def test_chains_keep_a_gaussian_target(drifts: str) -> None:
    """N(0, I) exp(-0.35 |z - 1.5|^2) is N(.618, .588) in each of 16 dimensions, for any drift."""
    generator = torch.Generator().manual_seed(0)
    rows, dim, moves = 400, 16, 240
    pull = {"exact": torch.inf, "capped": 0.5, "none": 0.0}[drifts]

    def reward(z: Tensor) -> Tensor:
        return -0.35 * ((z - 1.5) ** 2).sum(1)

    def drift(z: Tensor) -> Tensor:
        m = 0.5**0.5 / 2 * -0.7 * (z - 1.5)
        return m * (pull / m.norm(dim=1, keepdim=True)).clamp(max=1.0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    z, rates, kept = draw(rows, dim), [], []
    for number in range(moves):
        new = propose(z, drift(z), draw(rows, dim), RHO)
        ratio = reward(new) - reward(z) + log_ratio(z, drift(z), new, drift(new), RHO)
        accepted = torch.rand(rows, generator=generator).log() < ratio
        z = torch.where(accepted[:, None], new, z)
        if number >= 120:
            rates.append(float(accepted.double().mean()))
            kept.append(z)
    points = torch.cat(kept)
    assert float(points.mean()) == pytest.approx(1.05 / 1.7, abs=0.02)
    assert float(points.var()) == pytest.approx(1 / 1.7, abs=0.02)
    rate = sum(rates) / len(rates)
    assert rate == pytest.approx(0.89, abs=0.015) if drifts == "exact" else rate < 0.89


def starts_of(method: PCNL, n: int, **more: Any) -> tuple[Tensor, Any]:
    """The noises that a method hands on, from the pipeline's `n`."""
    found: list[Tensor] = []

    class Look(BestOfN):
        def __call__(self, ctx: Any, start: Population) -> Any:
            found.append(start.x.flatten().double())
            return (yield from super().__call__(ctx, start))

    look = PCNL(Look(n), **more)
    _, report = run(Toy(GAUSSIAN, "flow"), look, n, on_points(first), steps=3)
    return found[0], report


def test_noises_follow_the_tilted_law() -> None:
    """A short run that is affine in the noise, and a linear reward: N(lam c, 1), c its slope."""
    lam, n = 2.0, 240
    found, report = starts_of(
        PCNL(BestOfN(n)), n, lam=lam, chains=n // 2, burn_in=10, thin=4, through=None, pull=None
    )
    assert len(found) == n
    slope = gaussian_chain(GAUSSIAN, SCHEDULERS["flow"](), 3, eta=0.0)[1] ** 0.5  # noise to data
    assert float(found.mean()) == pytest.approx(lam * slope, abs=0.25)
    assert float(found.std()) == pytest.approx(1.0, abs=0.15)
    accepted = [a for row in report.trace.of("iterate") for a in row["accepted"]]
    assert sum(accepted) / len(accepted) > 0.9


class Keep(SMC):
    """A filter whose final cloud can be looked at."""

    clouds: ClassVar[list[Any]] = []

    def filter(self, ctx: Any, start: Population) -> Any:
        cloud = yield from super().filter(ctx, start)
        self.clouds.append(cloud)
        return cloud


def test_smc_counts_its_starts_back() -> None:
    """The model's law times exp(lam r), whatever the noises are drawn by; the evidence as well."""
    lam, n, steps, eta = 1.0, 400, 8, 0.3
    mean, variance = gaussian_chain(GAUSSIAN, SCHEDULERS["ddim"](), steps, eta)
    inner = Keep(n, lam=lam, standardise=False, when=every(2), eta=eta)
    method = PCNL(inner, lam=2.5, chains=n, burn_in=8, through=2, pull=None)
    _, report = run(Toy(GAUSSIAN, "ddim"), method, n, on_points(first), steps=steps)
    cloud = Keep.clouds.pop()
    weights = normalise(cloud.log_weights)[0]
    x = cloud.population.x.flatten().double()
    assert float(weights @ x) == pytest.approx(mean + lam * variance, abs=0.12)
    evidence = float(cloud.log_evidence + log_mean_exp(cloud.log_weights))
    assert evidence == pytest.approx(lam * mean + lam**2 * variance / 2, abs=0.15)
    uncounted = [row["ess"] for row in report.trace.of("weights")]
    assert uncounted[0] < 0.9 * n  # the first weighting is of noises that are not white
