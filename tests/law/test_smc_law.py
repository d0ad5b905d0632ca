"""`SMC` against exact laws: Gaussian data with an exact denoiser through real schedulers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from toy import SCHEDULERS, Mixture, Toy, gaussian_chain, on_points, points, run

from steer.core.ddim import ddim
from steer.core.resampling import log_mean_exp, normalise
from steer.core.types import Move, Population, Step
from steer.core.when import at, every
from steer.methods import SMC
from steer.pipeline.guided import guided
from steer.search.cloud import Cloud


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
GAUSSIAN = Mixture([[0.7]], [0.5])
TWO = Mixture([[-2.0], [1.0]], [0.5, 0.4], [0.3, 0.7])
STEPS = 16


def first(x: Tensor) -> Tensor:
    return x[:, 0]


def plain(**options: Any) -> Any:
    """A filter whose lam is that of the reward itself."""
    return SMC(**{"standardise": False, "lam": 3.0, **options})


def particles(cloud: Cloud) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of the first prompt."""
    weights = normalise(cloud.log_weights)[0].numpy()
    return cloud.population.x[: cloud.size].flatten().double().numpy(), weights


def distance(cloud: Cloud, cdf: Any) -> float:
    """Kolmogorov-Smirnov distance of the weighted particles from a law."""
    x, weights = particles(cloud)
    order = np.argsort(x)
    above = np.cumsum(weights[order])
    exact = cdf(x[order])
    return float(max((above - exact).max(), (exact - above + weights[order]).max()))


def exact_tilt(scheduler: str, lam: float, steps: int = STEPS) -> tuple[float, float, float]:
    """Mean, standard deviation and log evidence of the sampler's own law times exp(lam x)."""
    mean, variance = gaussian_chain(GAUSSIAN, SCHEDULERS[scheduler](), steps)
    return mean + lam * variance, variance**0.5, lam * mean + lam**2 * variance / 2


@pytest.mark.sample(0, 3, 4, 5, 9, 11, 12, 15)
@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("ddim", {}),
        ("ddim", {"ess": None}),
        ("ddim", {"ess": None, "resample": "multinomial"}),
        ("ddim", {"ess": None, "resample": "ssp"}),
        ("ddim", {"resample": "residual"}),
        ("ddim", {"resample": "stratified"}),
        ("ddim", {"potential": "max"}),
        ("ddim", {"potential": "sum", "lam": 2.0}),
        ("ddim", {"potential": "last"}),
        ("ddim", {"potential": "max", "ess": None, "temper": 0.008}),
        ("ddim", {"temper": 0.008, "when": every(1)}),
        ("ddim", {"temper": "adaptive", "when": every(2)}),
        ("euler_a", {}),  # the pipeline's own noise
        ("euler_a", {"kernel": "ddim"}),
        ("ddpm", {}),
        ("euler", {"when": every(3)}),  # our moves on its grid
        ("dpm++2m", {}),
    ],
)
def test_the_tilted_law_is_reproduced(scheduler: str, options: dict[str, Any]) -> None:
    """No tolerance for the grid: the discretised sampler's own law is known."""
    method = plain(n=1500, **options)
    grid = {"ddpm": "ddim", "dpm++2m": "euler_a", "euler": "euler_a"}.get(scheduler, scheduler)
    mean, std, log_z = exact_tilt(grid, method.lam)
    pipe = Toy(GAUSSIAN, scheduler)
    cloud, report = run(pipe, method.filter, 1500, on_points(first), steps=STEPS)
    assert distance(cloud, stats.norm(mean, std).cdf) < 0.09
    assert distance(cloud, stats.norm(mean - method.lam * std**2, std).cdf) > 0.25
    resampled = [row for row in report.trace.of("select") if row["step"] is not None]
    assert resampled or method.ess is not None
    evidence = float(cloud.log_evidence + log_mean_exp(cloud.log_weights))
    assert evidence == pytest.approx(log_z, abs=0.15)


def _chain(scheduler: str) -> tuple[float, float]:
    return gaussian_chain(GAUSSIAN, SCHEDULERS[scheduler](), STEPS)


@pytest.mark.sample
@pytest.mark.parametrize("ess", [0.0, 0.5])
@pytest.mark.parametrize("potential", ["difference", "max", "sum", "last"])
def test_a_tilted_mixture(potential: str, ess: float) -> None:
    """Two modes, a reward that prefers the small one; with and without resampling."""

    def reward(x: Tensor) -> Tensor:
        return -((x[:, 0] + 1.5) ** 2) / 2

    lam = 0.3 if potential == "sum" else 1.0  # sums of many previews are a far stronger potential
    method = plain(n=1200, lam=lam, potential=potential, ess=ess)
    cloud, report = run(Toy(TWO, "ddim"), method.filter, 1200, on_points(reward), steps=30)
    law = TWO.tilted(lambda x: lam * reward(x))
    assert distance(cloud, law.cdf) < 0.1  # 0.04 of which are the grid's
    assert distance(cloud, TWO.tilted(lambda x: 0 * x[:, 0]).cdf) > 0.15
    evidence = float(cloud.log_evidence + log_mean_exp(cloud.log_weights))
    assert evidence == pytest.approx(law.log_evidence, abs=0.15)
    resampled = [row for row in report.trace.of("select") if row["step"] is not None]
    assert not resampled or ess > 0


@pytest.mark.parametrize(
    ("resample", "options"),
    [
        ("systematic", {}),
        ("systematic", {"proposal": True}),
        ("ssp", {"ess": None}),
        ("multinomial", {"potential": "max", "ess": None}),
    ],
)
def test_evidence_is_unbiased(resample: str, options: dict[str, Any]) -> None:
    """The mean of 250 estimates by 6 particles each, within four standard errors."""
    lam, count = 2.0, 250
    if options.get("proposal"):
        options = {**options, "proposal": Shifted(0.3, 1.15)}
    method = plain(n=6, lam=lam, resample=resample, when=every(2), **options)
    cloud, _ = run(Toy(GAUSSIAN), method.filter, 6, on_points(first), prompt=[""] * count, steps=8)
    estimates = (cloud.log_evidence + log_mean_exp(cloud.log_weights)).exp()
    exact = math.exp(exact_tilt("ddim", lam, 8)[2])
    error = float(estimates.std()) / count**0.5
    assert error < 0.15 * exact
    assert float(estimates.mean()) == pytest.approx(exact, abs=4 * error)


class Shifted:
    """A proposal that pulls every particle by `pull` standard deviations, with wider noise."""

    def __init__(self, pull: float, wider: float) -> None:
        self.pull, self.wider = pull, wider

    def __call__(self, ctx: Any, step: Step, population: Population, output: Tensor) -> Move:
        base = ddim(step, population.x, step.x0(population.x, output), 1.0)
        return Move(base.mean + self.pull * base.std, self.wider * base.std, base.x0)


@pytest.mark.sample
@pytest.mark.parametrize("lam", [0.0, 2.0])
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_a_twisted_proposal_is_corrected(scheduler: str, lam: float) -> None:
    """Particles drawn from another law, weighted back to the tilted one."""
    method = plain(n=1500, lam=lam, when=every(1), proposal=Shifted(0.25, 1.1))
    cloud, _ = run(Toy(GAUSSIAN, scheduler), method.filter, 1500, on_points(first), steps=10)
    mean, std, log_z = exact_tilt(scheduler, lam, 10)
    assert distance(cloud, stats.norm(mean, std).cdf) < 0.08
    evidence = float(cloud.log_evidence + log_mean_exp(cloud.log_weights))
    assert evidence == pytest.approx(log_z, abs=0.1)


def test_a_gradient_proposal_through_the_denoiser() -> None:
    """A twisted proposal along d x0 / d x, which needs a recorded call; two dimensions."""

    class Twisted:
        grad = True

        def __call__(self, ctx: Any, step: Step, population: Population, output: Tensor) -> Move:
            with torch.enable_grad():
                x0 = step.x0(population.x, output)
                (slope,) = torch.autograd.grad(1.5 * x0[:, 0].sum(), population.x)
            base = ddim(step, population.x, x0, 1.0)
            return Move(base.mean + base.std**2 * slope, base.std, base.x0)

    data = Mixture([[0.7, -0.4]], [0.5])
    method = plain(n=800, lam=1.5, when=every(1), proposal=Twisted())
    cloud, report = run(Toy(data), method.filter, 800, on_points(first, 2), steps=8)
    mean, std, log_z = exact_tilt("ddim", 1.5, 8)
    rows = cloud.population.x[:, 0].flatten()
    first_axis = Cloud.of(Population(rows, cloud.population.ids))
    first_axis.log_weights = cloud.log_weights
    assert distance(first_axis, stats.norm(mean, std).cdf) < 0.08
    evidence = float(cloud.log_evidence + log_mean_exp(cloud.log_weights))
    assert evidence == pytest.approx(log_z, abs=0.03)
    assert report.ledger.backward_rows == 8 * 800
    sizes = [row["ess"] for row in report.trace.of("weights")]
    assert min(sizes) > 0.5 * 800  # which is what twisting is for
    assert method.cost(8) == 800 * (3 * 8 + 1)


@pytest.mark.sample
@pytest.mark.parametrize("ess", [0.5, None])
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_a_constant_reward_leaves_the_law_unchanged(scheduler: str, ess: float | None) -> None:
    method = SMC(1500, ess=ess, lam=5.0, resample="multinomial")
    reward = on_points(lambda x: 0 * x[:, 0] + 0.3)
    cloud, report = run(Toy(GAUSSIAN, scheduler), method.filter, 1500, reward, steps=STEPS)
    mean, variance = _chain(scheduler)
    assert distance(cloud, stats.norm(mean, variance**0.5).cdf) < 0.05
    assert all(row["ess"] == pytest.approx(1500) for row in report.trace.of("weights"))
    assert float(cloud.log_evidence + log_mean_exp(cloud.log_weights)) == pytest.approx(0, abs=1e-9)


def test_lam_means_the_same_for_every_unit() -> None:
    """The same reward in other units and with another origin: the same particles and weights."""

    def final(scale: float, shift: float) -> Cloud:
        reward = on_points(lambda x: scale * x[:, 0] + shift)
        return run(Toy(TWO), SMC(64, lam=3.0).filter, 64, reward, steps=10)[0]

    one, other = final(1.0, 0.0), final(0.01, 0.2)
    assert one.population.ids == other.population.ids
    torch.testing.assert_close(one.population.x, other.population.x)
    weights = [normalise(cloud.log_weights) for cloud in (one, other)]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-6)


def test_samples_follow_the_weights() -> None:
    """One image out of 20 per prompt, drawn by weight: 120 prompts, against the tilted law."""
    lam = 3.0
    method = plain(n=20, lam=lam, choose="sample")
    pipe = Toy(GAUSSIAN)
    out = guided(pipe, on_points(first), method=method, lane_width=20)(
        [""] * 120,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
    )
    mean, std, _ = exact_tilt("ddim", lam)
    found = points(out.images).flatten().numpy()
    assert stats.kstest(found, stats.norm(mean, std).cdf).pvalue > 0.01
    best = guided(pipe, on_points(first), method=plain(n=20, lam=lam), lane_width=20)(
        [""] * 120,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(2),
        output_type="pt",
    )
    assert float(points(best.images).mean()) > mean + 0.5 * std


def test_work_is_counted_as_it_is_done() -> None:
    pipe = Toy({"left": GAUSSIAN, "right": TWO})
    out = guided(pipe, on_points(first), method=SMC(6, when=at(0.25, 0.5)))(
        ["left", "right"], num_inference_steps=12, generator=torch.Generator().manual_seed(0)
    )
    ledger = out.report.ledger
    assert pipe.denoiser.rows == ledger.denoiser_rows == 2 * SMC(6).cost(12) == 2 * 6 * 12
    assert pipe.denoiser.calls == ledger.denoiser_calls
    assert pipe.vae.decodes == ledger.decodes == 2 * 6 * 3  # two scorings and the final one
    assert ledger.reward_calls == 2 * 6 * 3
