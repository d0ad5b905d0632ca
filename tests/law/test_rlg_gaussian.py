"""RL guidance in closed form: its scale divides the KL coefficient of the tilted distribution.

The base is N(m, v). Tuning it for a reward r with KL coefficient beta gives p(x) exp(r(x) / beta);
for r(x) = a x that is N(m + a v / beta, v). All are Gaussians of one variance, so the guided score
is that of the tilt by r s / beta at every noise level, and the discretised samplers agree row by
row, with no tolerance for the grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torch import Tensor
from toy import SCHEDULERS, Denoiser, Mixture, Toy, gaussian_chain, on_points

from steer.driver.denoisers import RLG, Blend, PreferenceGuidance, SwitchAt, linear, window
from steer.methods import BestOfN, Budget, NoiseOptimization
from steer.pipeline.guided import guided


MEAN, STD, SLOPE, BETA = -1.0, 1.5, 0.8, 2.0
STEPS = 12


def tilt(scale: float) -> Mixture:
    """p(x) exp(scale * SLOPE * x / BETA)."""
    return Mixture([[MEAN + scale * SLOPE * STD**2 / BETA]], [STD])


def pair(scheduler: str) -> tuple[Toy, Denoiser]:
    """The base pipeline, in float64, and the tuned denoiser."""
    pipe = Toy(tilt(0.0), scheduler, torch.float64)
    pipe.unet = pipe.denoiser
    return pipe, Denoiser([tilt(1.0)])


def sampled(pipe: Any, count: int = 16, **given: Any) -> Tensor:
    """Plain samples of a guided pipeline."""
    steered = guided(pipe, on_points(lambda x: x[:, 0]), method=BestOfN(1), **given)
    out = steered(
        "",
        num_inference_steps=STEPS,
        num_images_per_prompt=count,
        generator=torch.Generator().manual_seed(0),
    )
    return out.images.flatten()


@pytest.mark.parametrize("scale", [-0.5, 0.3, 1.0, 1.6, 3.0])
def test_the_tilt_that_the_scale_stands_for(scale: float) -> None:
    law = tilt(0.0).tilted(lambda x: scale * SLOPE * x[:, 0] / BETA)
    density = np.exp(law.logs - law.log_evidence)
    mean = trapezoid(law.grid * density, law.grid)
    assert mean == pytest.approx(float(tilt(scale).means[0, 0]), abs=1e-6)


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
@pytest.mark.parametrize("scale", [0.4, 1.6, 3.0])
def test_rlg_is_the_tilt_by_reward_over_beta_times_scale(scheduler: str, scale: float) -> None:
    pipe, tuned = pair(scheduler)
    found = sampled(pipe, tuned=tuned, blend=RLG(scale))
    exact = sampled(Toy(tilt(scale), scheduler, torch.float64))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


def test_the_law_of_many_samples_is_the_tilt() -> None:
    pipe, tuned = pair("ddim")
    found = sampled(pipe, 4000, tuned=tuned, blend=RLG(2.0))
    mean, variance = gaussian_chain(tilt(2.0), SCHEDULERS["ddim"](), STEPS, eta=0.0)
    assert float(found.mean()) == pytest.approx(mean, abs=4 * (variance / 4000) ** 0.5)
    assert float(found.var()) == pytest.approx(variance, rel=0.1)


def test_a_reward_that_changes_the_variance_divides_beta_where_noise_is_low() -> None:
    """r(x) = -x^2 / 2: precisions add, so RLG has precision 1 / v + scale / beta near the data."""
    beta, scale = 1.5, 1.8
    precise = STD**-2 + 1 / beta
    tuned = Mixture([[MEAN * STD**-2 / precise]], [precise**-0.5])
    aimed = STD**-2 + scale / beta
    exact = Mixture([[MEAN * STD**-2 / aimed]], [aimed**-0.5])
    x, one = torch.linspace(-4, 4, 33, dtype=torch.float64)[:, None], torch.ones(33).double()

    def score(mixture: Mixture, sigma: float) -> Tensor:
        clean = mixture.posterior_mean(x, one, sigma * one)
        return (clean - x) / sigma**2

    def gap(sigma: float) -> float:
        base, there = score(tilt(0.0), sigma), score(tuned, sigma)
        return float((base + scale * (there - base) - score(exact, sigma)).abs().max())

    assert gap(1e-3) < 1e-4 < gap(0.5)  # exact at the data, a blend of scores before


@pytest.mark.parametrize(
    ("blend", "alike"),
    [
        (SwitchAt(0.5), RLG(window(1.0, 0.55, 1.0, outside=0.0))),
        (RLG(linear(2.0, 2.0)), RLG(2.0)),
        (RLG(window(0.0, 0.0, 0.5)), SwitchAt(0.5)),
    ],
)
def test_blends_that_are_one_another(blend: Blend, alike: Blend) -> None:
    pipe, tuned = pair("ddim")
    first = sampled(pipe, tuned=tuned, blend=blend)
    assert torch.equal(first, sampled(pipe, tuned=tuned, blend=alike))


def test_preference_guidance_adds_the_contrast() -> None:
    """base + s (pos - neg) of Gaussians of one variance moves the mean by s (m_pos - m_neg)."""
    pipe, positive = pair("euler")
    found = sampled(pipe, tuned=positive, blend=PreferenceGuidance(Denoiser([tilt(-0.5)]), 1.2))
    exact = sampled(Toy(tilt(1.2 * 1.5), "euler", torch.float64))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scheduler", ["ddim", "flow"])
def test_gradients_go_through_both_models(scheduler: str) -> None:
    pipe, tuned = pair(scheduler)
    method = NoiseOptimization(iterations=3, through=4)
    reward = on_points(lambda x: -((x[:, 0] - 2) ** 2))

    def optimised(pipe: Toy, **given: Any) -> tuple[Tensor, Any]:
        generator = torch.Generator().manual_seed(0)
        out = guided(pipe, reward, method=method, **given)(
            "", num_inference_steps=STEPS, generator=generator
        )
        return out.images.flatten(), out.report.ledger

    found, spent = optimised(pipe, tuned=tuned, blend=RLG(1.7))
    exact, plain = optimised(Toy(tilt(1.7), scheduler, torch.float64))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-7)
    assert spent.backward_rows == 2 * plain.backward_rows
    assert spent.denoiser_rows == 2 * plain.denoiser_rows == pipe.denoiser.rows + tuned.rows


@pytest.mark.parametrize(
    "blend", [RLG(2.0), SwitchAt(0.5), RLG(window(2.0, 0.5, 1.0)), RLG(linear(1.0, 2.0))]
)
@pytest.mark.parametrize("method", [None, Budget(6, BestOfN(16)), Budget(7, NoiseOptimization(4))])
def test_rows_are_those_that_the_models_saw_and_within_compute(blend: Blend, method: Any) -> None:
    pipe, tuned = pair("ddim")
    reward = on_points(lambda x: x[:, 0])
    effort: dict[str, Any] = {"compute": 8} if method is None else {"method": method}
    steered = guided(pipe, reward, tuned=tuned, blend=blend, **effort)
    out = steered("", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0))
    ledger = out.report.ledger
    assert ledger.denoiser_rows + ledger.checked_rows == pipe.denoiser.rows + tuned.rows
    assert ledger.equivalent_rows <= STEPS * (8 if method is None else method.compute)
    assert ledger.equivalent_rows > STEPS * 3
