"""`NoiseSearch`: its proposals, its paths, its cost, and a planted optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import diffusers
import pytest
import torch
from families import SCHEDULERS, arguments, seeded, shared
from torch import Tensor

from steer.core.errors import UnsupportedSchedulerError
from steer.driver.grid import Schedule
from steer.methods import BestOfN, NoiseSearch
from steer.methods.noise.paths import add_noise, bounds
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward
from steer.search.starts import FIRST_MADE, Starts


def red(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2))


RED = FunctionReward(red, differentiable=False, needs_prompt=False)
ALL: dict[str, dict[str, Any]] = {
    "zero-order": {"n": 3, "rounds": 3},
    "evolution": {"n": 4, "rounds": 3, "elites": 2},
    "paths": {"n": 4, "rounds": 2, "keep": 2, "back": 1},
}


def search(strategy: str, width: int | None = None, family: str = "sd", **more: Any) -> Any:
    given = {k: more.pop(k) for k in list(more) if k in NoiseSearch.__dataclass_fields__}
    method = NoiseSearch(strategy=strategy, **{**ALL[strategy], **given})  # pyright: ignore
    return guided(shared(family), RED, method=method, lane_width=width)(**arguments(family, **more))


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_runs_and_costs_on_every_family(strategy: str, family: str) -> None:
    out = search(strategy, family=family)
    ledger = out.report.ledger
    assert ledger.equivalent_rows == ledger.denoiser_rows == out.report.method.cost(4)
    if strategy != "paths":
        assert out.rewards[0] >= out.report.base_reward[0]
        judged = 9 if strategy == "zero-order" else 12
        assert ledger.reward_calls == ledger.decodes == judged


@pytest.mark.parametrize("strategy", ["zero-order", "evolution"])
def test_rounds_never_lose(strategy: str) -> None:
    rewards = [search(strategy, rounds=r).rewards[0] for r in (1, 2, 4)]
    assert rewards == sorted(rewards)
    first = guided(shared("sd"), RED, method=BestOfN(ALL[strategy]["n"]))(**arguments("sd"))
    assert rewards[0] == pytest.approx(first.rewards[0], abs=1e-6)


@pytest.mark.parametrize("strategy", ALL)
def test_batch_invariance(strategy: str) -> None:
    """Lanes of 1, 3 and 8; prompts together or apart."""
    prompts = ["a red circle", "a blue square"]
    narrow, odd, wide = (
        search(strategy, width=w, prompt=prompts, generator=[seeded(0), seeded(1)])
        for w in (1, 3, 8)
    )
    for other in (odd, wide):
        assert other.report.chosen == narrow.report.chosen
        assert other.rewards == pytest.approx(narrow.rewards, abs=1e-5)
    for index, prompt in enumerate(prompts):
        alone = search(strategy, prompt=prompt, generator=[seeded(index)])
        assert alone.rewards[0] == pytest.approx(narrow.rewards[index], abs=1e-5)
        assert alone.report.chosen[0][1] == narrow.report.chosen[index][1]


@pytest.mark.parametrize("strategy", ALL)
def test_several_images_per_prompt(strategy: str) -> None:
    out = search(strategy, num_images_per_prompt=2)
    assert len(out.images) == len(out.rewards) == 2
    assert len(set(out.report.chosen)) == 2
    assert out.rewards == sorted(out.rewards, reverse=True)
    assert out.report.ledger.equivalent_rows == 2 * out.report.method.cost(4)


def test_short_runs_judge_and_the_best_is_sampled_in_full() -> None:
    out = search("zero-order", through=2)
    method, ledger = out.report.method, out.report.ledger
    assert ledger.equivalent_rows == method.cost(4) == 3 * 3 * 2 + 4
    glances = out.report.trace.of("iterate")
    scores = {k: r for row in glances for k, r in zip(row["particle"], row["reward"], strict=True)}
    assert len(scores) == 9
    assert out.report.chosen == [(0, max(scores, key=scores.__getitem__))]


def children(strategy: str, parents: Tensor, count: int, **more: Any) -> Tensor:
    noise = torch.randn(count, *parents.shape[1:], generator=seeded(5), dtype=parents.dtype)
    return NoiseSearch(strategy=strategy, **{**ALL[strategy], **more})._children(parents, noise)


def test_neighbours_of_the_best() -> None:
    parents = torch.randn(3, 4, 8, 8, generator=seeded(0), dtype=torch.float64)
    made = children("zero-order", parents, 5, cosine=0.9)
    cosines = torch.cosine_similarity(made.flatten(1), parents[:1].flatten(1))
    assert cosines.tolist() == pytest.approx([0.9] * 5)
    norms = made.flatten(1).norm(dim=1)
    assert norms.tolist() == pytest.approx([float(parents[0].norm())] * 5)


def test_evolution_stays_on_the_shell_and_white() -> None:
    """No coordinate loses its variance, over rounds of learning from children alone."""
    parents = torch.randn(4, 4, 32, 32, generator=seeded(0), dtype=torch.float64)
    shell = float(parents[0].norm())
    for _ in range(6):
        parents = children("evolution", parents, 200, elites=4)
        assert parents.flatten(1).norm(dim=1).tolist() == pytest.approx([shell] * 200)
        parents = parents[:4]
    sample = children("evolution", parents, 400, elites=4)
    mean = sample.mean(0).flatten()
    agreement = float(mean.norm()) / shell
    assert agreement < 0.96
    # around the common mean every coordinate has the same variance, and is Gaussian
    spread = sample.flatten(1) - mean
    expected = (shell**2 / mean.numel()) * (1 - agreement**2)
    variances = spread.var(0) / expected
    assert float(variances.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(variances.std()) == pytest.approx(math.sqrt(2 / 400), rel=0.15)
    kurtosis = float((spread**4).mean() / (spread**2).mean() ** 2)
    assert kurtosis == pytest.approx(3.0, abs=0.1)


def test_elites_that_agree_narrow_the_search() -> None:
    noise = torch.randn(2, 1000, generator=seeded(0), dtype=torch.float64)
    apart = children("evolution", noise, 4, elites=2)
    close = children("evolution", torch.stack([noise[0], noise[0] + 0.5 * noise[1]]), 4, elites=2)

    def cosine(made: Tensor) -> float:
        return float(torch.cosine_similarity(made, noise[:1]).mean())

    assert cosine(close) > cosine(apart) + 0.2
    same = children("evolution", noise[:1].repeat(2, 1), 4, elites=2)
    assert cosine(same) == pytest.approx(0.95)  # never so narrow that nothing changes


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        ("DDIMScheduler", {}),
        ("EulerDiscreteScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)
def test_noising_again_keeps_the_marginal(cls: str, config: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, cls)(**config)
    scheduler.set_timesteps(10)
    steps = Schedule.from_scheduler(scheduler)
    clean = torch.full((40_000, 1), 1.3)
    for at, back in ((6, 2), (3, 3), (9, 1)):
        here, there = steps[at], steps[at - back]
        x = here.alpha * clean + here.sigma * torch.randn(clean.shape, generator=seeded(1))
        up = add_noise(x, here, there, torch.randn(clean.shape, generator=seeded(2)))
        assert float(up.mean()) == pytest.approx(there.alpha * 1.3, abs=0.02 * there.sigma)
        assert float(up.std()) == pytest.approx(there.sigma, rel=0.02)


def test_paths_log_their_ancestors_and_advance() -> None:
    assert bounds(NoiseSearch(rounds=3, strategy="paths"), 20) == [5, 10, 15, 20]
    out = search("paths")
    branches = out.report.trace.of("select")
    assert [len(row["particle"]) for row in branches] == [4, 4]
    assert set(branches[0]["ancestors"]) == {0, 1}
    assert set(branches[1]["ancestors"]) <= set(branches[0]["particle"])
    assert out.report.chosen[0][1] in branches[1]["particle"]


def test_paths_on_solvers_that_cannot_restart_are_refused() -> None:
    pipe = shared("sd")
    pipe.scheduler = SCHEDULERS["pndm"]()
    with pytest.raises(
        UnsupportedSchedulerError, match=r"PNDMScheduler cannot (go from|begin at) step"
    ):
        guided(pipe, RED, method=NoiseSearch(strategy="paths", **ALL["paths"]))(**arguments("sd"))
    shared("sd")


def test_a_planted_optimum_is_found() -> None:
    """Towards a target picture, local search gets closer than the same number of random draws."""
    target = guided(shared("sd"), RED, method=BestOfN(1))(
        **arguments("sd", generator=seeded(99), output_type="pt")
    ).images

    def near(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return -(images - target).square().mean((1, 2, 3))

    method = NoiseSearch(n=4, rounds=16, cosine=0.9)
    local = guided(shared("sd"), near, method=method)(**arguments("sd"))
    draws = guided(shared("sd"), near, method=BestOfN(64))(**arguments("sd"))
    assert local.report.ledger.denoiser_rows == draws.report.ledger.denoiser_rows
    assert local.rewards[0] > draws.rewards[0]


def test_names_and_noise_of_made_particles() -> None:
    starts = Starts(seeds=(7, 8))
    assert starts.names([0, 1, 0]) == ((0, FIRST_MADE), (1, FIRST_MADE), (0, FIRST_MADE + 1))
    like = torch.zeros(0, 4, dtype=torch.float16)
    a = starts.noise([(0, 1), (1, 1)], (3,), like)
    assert a.dtype == torch.float32
    assert torch.equal(a[1:], starts.noise([(1, 1)], (3,), like))
    assert torch.equal(a[1:], Starts(seeds=(8,)).noise([(0, 1)], (3,), like))
    assert not torch.equal(a, starts.noise([(0, 1), (1, 1)], (4,), like))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"rounds": 1.5}, r"rounds=1\.5"),
        ({"strategy": "random"}, "strategy='random'"),
        ({"cosine": 1.0}, r"cosine=1\.0"),
        ({"cosine": None}, "cosine=None"),
        ({"at": 0}, "at=0"),
        ({"through": 0}, "through=0"),
        ({"strategy": "evolution", "elites": 1}, "elites=1"),
        ({"strategy": "paths", "n": 3}, "n=3, keep=2"),
        ({"strategy": "paths", "through": 2}, "through=2"),
    ],
)
def test_bad_arguments(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSearch(**given)


def test_too_few_steps_for_the_paths() -> None:
    with pytest.raises(ValueError, match=r"need at least 6 steps, and the call has 4"):
        search("paths", rounds=5, back=1)


def test_planning_for_a_budget() -> None:
    for compute in (1, 2, 3.5, 8, 16):
        plan = NoiseSearch.for_compute(compute, 20)
        assert plan.cost(20) <= compute * 20
    assert NoiseSearch.for_compute(16, 20) == NoiseSearch(n=4, rounds=4)
    with pytest.raises(ValueError, match=r"compute=0\.5"):
        NoiseSearch.for_compute(0.5, 20)
