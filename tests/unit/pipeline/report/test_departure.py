"""The KL ledger and the norm of made noises: against closed forms, call by call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from toy import SCHEDULERS, Mixture, Toy, gaussian_chain, on_points

from steer.core.divergence import kl_of_best, kl_of_choice, kl_of_weights
from steer.core.types import Population
from steer.core.when import at, every
from steer.methods import (
    SMC,
    BestOfN,
    Budget,
    Gate,
    GradientProposal,
    Guide,
    NoiseOptimization,
    NoiseSearch,
    Prune,
    Tree,
)
from steer.pipeline.guided import guided
from steer.pipeline.report.departure import words
from steer.search.method import Method
from steer.search.picks.draws import Pessimistic, SoftBest
from steer.search.picks.ranks import Quantile


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
ONE = Mixture([[0.7]], [0.5])
first = on_points(lambda x: x[:, 0])


def report_of(
    method: Any,
    scheduler: str = "ddim",
    prompt: Any = "",
    images: int = 1,
    steps: int = 8,
    mixture: Any = ONE,
    **options: Any,
) -> Any:
    pipe = Toy(mixture, scheduler, torch.float64)
    call: dict[str, Any] = {"num_inference_steps": steps, "num_images_per_prompt": images}
    generator = torch.Generator().manual_seed(0)
    return guided(pipe, first, method=method, **options)(prompt, generator=generator, **call).report


@pytest.mark.parametrize(
    ("method", "images", "expected"),
    [
        (BestOfN(1), 1, 0.0),
        (BestOfN(1), 3, 0.0),
        (BestOfN(4), 1, math.log(4) - 3 / 4),
        (BestOfN(4), 2, kl_of_best(8, 2)),
        (Prune(8, (4, 2), (0.4, 0.7)), 1, math.log(8) - 7 / 8),
        (Prune(8, (4, 2), (0.5, 0.7), strides=3), 1, math.log(8) - 7 / 8),
        (NoiseSearch(n=4, rounds=1), 1, math.log(4) - 3 / 4),
        (NoiseSearch(n=4, rounds=1, through=2), 1, math.log(4) - 3 / 4),
        (Gate(BestOfN(2), threshold=99.0, max_rounds=3), 1, math.log(6) - 5 / 6),
        (Gate(BestOfN(2), threshold=-99.0, max_rounds=3), 1, math.log(2) - 1 / 2),
        (Budget(8, BestOfN(4)), 1, math.log(4) - 3 / 4),
        (Guide(BestOfN(4), strength=0.0), 1, math.log(4) - 3 / 4),
    ],
)
def test_choices_among_draws(method: Method, images: int, expected: float) -> None:
    report = report_of(method, images=images)
    assert report.kl == [pytest.approx(expected, abs=1e-12)]
    assert report.noise_norm == [None] * images
    assert (f"{expected:.2f} nats" in str(report)) == (expected > 0)


def test_every_prompt_has_its_own() -> None:
    mixture = {"low": Mixture([[-5.0]], [0.5]), "high": Mixture([[5.0]], [0.5])}
    method = Gate(BestOfN(2), threshold=0.0, max_rounds=3)
    report = report_of(method, prompt=["low", "high"], mixture=mixture)
    assert report.kl == pytest.approx([kl_of_best(6), kl_of_best(2)])


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
@pytest.mark.parametrize(
    "method",
    [
        Guide(BestOfN(2), when=every(1)),
        NoiseOptimization(iterations=2, through=2),
        NoiseSearch(n=2, rounds=2),
        Tree(4, batch=2),
        Gate(NoiseSearch(n=2, rounds=2), threshold=99.0, max_rounds=2),
        SMC(4, proposal=GradientProposal()),
    ],
)
def test_where_no_formula_holds(method: Method, scheduler: str) -> None:
    report = report_of(method, scheduler)
    assert report.kl == [None]
    assert "nats" not in str(report)


def test_a_method_of_ones_own_has_none() -> None:
    assert report_of(Scaled(1.0)).kl == [None]


@pytest.mark.parametrize("select", [SoftBest(2.0), Pessimistic(2.0)])
def test_draws_are_those_of_their_weights(select: Any) -> None:
    report = report_of(BestOfN(8), select=select)
    scores = [reward for row in report.trace.of("score") for reward in row["reward"]]
    values = np.array(scores)
    values = (values - values.mean()) / values.std()
    if isinstance(select, SoftBest):
        weights = np.exp(values / 2.0)
    else:
        low, high, level = values.min() - 10.0, values.max(), 0.0
        for _ in range(100):  # the level at which the weights sum to 1
            level = (low + high) / 2
            heavy = np.maximum(values - level, 0).mean() / 2.0 > 1
            low, high = (level, high) if heavy else (low, level)
        weights = np.maximum(values - level, 0)
    weights = weights / weights.sum()
    some = weights[weights > 0]
    exact = float((some * np.log(8 * some)).sum())
    assert 0 < exact < kl_of_best(8)
    assert report.kl == [pytest.approx(exact, abs=1e-6)]


def test_a_quantile_is_less_greedy_than_the_best() -> None:
    found = [report_of(BestOfN(n), select=Quantile(n_eff=4)).kl[0] for n in (4, 8, 16)]
    assert found[0] == pytest.approx(kl_of_best(4))
    assert found[1] < kl_of_best(8) and found[2] < kl_of_best(16)


def test_a_filter_adds_up_its_resamplings_and_its_choice() -> None:
    method = SMC(6, lam=3.0, when=at(0.3, 0.6), ess=None)
    report = report_of(method, "ddpm")
    rows = [row for row in report.trace.of("weights") if row["step"] is not None]
    spent = sum(kl_of_weights(np.array(row["log_weights"])) for row in rows)
    assert len(rows) == 2 and spent > 0
    assert report.kl == [pytest.approx(spent + kl_of_choice(6))]
    never = report_of(SMC(6, lam=3.0, when=at(0.3, 0.6), ess=0), "ddpm")
    assert never.kl == [pytest.approx(math.log(6))]


def test_a_draw_by_weights_is_the_tilt() -> None:
    """A linear reward on a Gaussian: KL(tilted || plain) = lam^2 v / 2."""
    method = SMC(400, lam=2.0, when=at(0.5), ess=0, standardise=False, choose="sample")
    variance = gaussian_chain(ONE, SCHEDULERS["ddpm"](), 8)[1]
    assert report_of(method, "ddpm").kl == [pytest.approx(2.0**2 * variance / 2, abs=0.1)]


@dataclass(frozen=True)
class Scaled(Method):
    """Samples one noise at another norm."""

    factor: float
    n: int = 1

    def cost(self, steps: int) -> int:
        return steps

    def __call__(self, ctx: Any, start: Population) -> Any:
        made = ctx.starts.adopt(self.factor * start.x, [prompt for prompt, _ in start.ids])
        return (yield from ctx.sample(made))


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "flow"])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_norm_of_a_noise_that_was_made(scheduler: str, factor: float) -> None:
    """Against the draw that it was made from, in units of the scheduler's own noise."""
    dim = 300
    mixture = Mixture([[0.0] * dim], [0.5])
    report = report_of(Scaled(factor), scheduler, mixture=mixture)
    noise = torch.randn(
        1, dim, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    score = (factor**2 * float(noise.square().mean()) - 1) / math.sqrt(2 / dim)
    assert report.noise_norm == [pytest.approx(score, rel=1e-5, abs=1e-5)]
    assert ("unusual" in str(report)) == (abs(score) > 3)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_neighbours_keep_the_norm(scheduler: str) -> None:
    report = report_of(NoiseSearch(n=3, rounds=6), scheduler, mixture=Mixture([[0.7] * 50], [0.5]))
    known = [value for value in report.noise_norm if value is not None]
    assert len(known) == 1 and abs(known[0]) < 3
    assert "Norm of the initial noise" in str(report)


def test_the_page_has_the_lines(tmp_path: Any) -> None:
    pipe = Toy(ONE, "ddim")
    steered = guided(pipe, first, method=BestOfN(4))
    out = steered("", num_inference_steps=4, output_type="pt")
    page = out.report.save(tmp_path / "report.html", out.images).read_text()
    assert "KL from the plain sampler: 0.64 nats" in page


def test_words() -> None:
    assert words(None, [None]) == [] == words(0.0, [])
    assert "1.23 nats" in words(1.234, [])[0]
    assert "unusual" in words(None, [None, -3.2])[0]
    assert "unusual" not in words(None, [2.9])[0]
