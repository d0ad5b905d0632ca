"""`EvoSearch`: what mutation keeps, who becomes a parent, cost, batches, and bad input."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from counted_work import agrees, counting
from families import arguments, redness, seeded, shared
from toy import Mixture, Toy, on_points, run

from steer.core.errors import UnsupportedSchedulerError
from steer.methods import BestOfN, Budget, EvoSearch, Then
from steer.methods.particles.evo_search import Pool
from steer.pipeline.guided import guided


STEPS = 6
SMALL = EvoSearch((3, 2, 2), at=(0.0, 0.5), elites=2)


def called(method: Any, scheduler: str = "ddim", width: int | None = None, **more: Any) -> Any:
    steered = guided(shared("sd", scheduler), redness, method=method, lane_width=width)
    return steered(**arguments("sd", **{"num_inference_steps": STEPS, **more}))


def descent(report: Any, prompt: int = 0) -> list[tuple[int | None, dict[int, int]]]:
    """Step and parents by child, of every generation after the first."""
    return [
        (row["step"], dict(zip(row["particle"], row["ancestors"], strict=True)))
        for row in report.trace.of("branch", prompt)
    ]


def finals(report: Any, prompt: int = 0) -> dict[int, float]:
    return {
        k: reward
        for row in report.trace.of("score", prompt)
        for k, reward in zip(row["particle"], row["reward"], strict=True)
    }


def children(method: EvoSearch, scheduler: str, level: int, count: int, d: int) -> dict[str, Any]:
    """`count` parents of exact noise and of exact marginals, and their children, `(count, d)`."""
    data = Mixture([[0.7] * d], [0.5])
    made: dict[str, Any] = {}

    def search(ctx: Any, start: Any) -> Any:
        step = ctx.steps[level]
        x = start.x
        if level:
            random = torch.Generator().manual_seed(5)
            noise, clean = torch.randn(2, count, d, 1, 1, generator=random, dtype=x.dtype)
            x = step.alpha * (0.7 + 0.5 * clean) + step.sigma * noise
        output = yield from ctx.denoise(start.at(x), step)
        x0 = step.x0(x, output)
        states = zip(x.unbind(), x0.unbind(), strict=True)
        pool = Pool(start.take([]), {level: dict(zip(start.ids, states, strict=True))})
        found = method._mutated(ctx, pool, start.ids, 0, step)
        made.update(step=step, x=x.flatten(1), x0=x0.flatten(1), child=found.x.flatten(1))
        return start

    toy = Toy(data, scheduler, dtype=torch.float64)
    run(toy, search, count, on_points(lambda x: x[:, 0]), steps=10, width=count)
    return made


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "flow"])
def test_mutated_noise_is_noise(scheduler: str) -> None:
    """Mean 0, the draw's own variance, and the cosine that was asked for; every norm is kept."""
    found = children(EvoSearch(mutation=0.6), scheduler, 0, 64, 64)
    x, child = found["x"], found["child"]
    torch.testing.assert_close(child.norm(dim=1), x.norm(dim=1))
    cosine = (x * child).sum(1) / (x.norm(dim=1) * child.norm(dim=1))
    torch.testing.assert_close(cosine, torch.full_like(cosine, 0.8))
    scale = float(x.std())
    count = child.numel()
    assert abs(float(child.mean())) < 4 * scale / count**0.5
    assert float(child.var()) == pytest.approx(scale**2, rel=4 * (2 / count) ** 0.5)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "flow"])
@pytest.mark.parametrize("level", [3, 7])
def test_mutated_states_keep_their_noise_level(scheduler: str, level: int) -> None:
    """About alpha D the child's noise has variance sigma^2 and correlation sqrt(1 - b^2).

    With Gaussian data the child is linear in the parent, so its law is known too.
    """
    rho = 0.8
    found = children(EvoSearch(mutation=0.6), scheduler, level, 256, 32)
    step, x, x0, child = (found[k] for k in ("step", "x", "x0", "child"))
    before, after = ((y - step.alpha * x0) / step.sigma for y in (x, child))
    fresh = (after - rho * before) / 0.6
    count = fresh.numel()
    assert abs(float(fresh.mean())) < 4 / count**0.5
    assert float(fresh.var()) == pytest.approx(1, rel=4 * (2 / count) ** 0.5)
    assert abs(float((fresh * before).mean())) < 4 * float(before.std()) / count**0.5
    m, s = 0.7, 0.5
    total = step.alpha**2 * s**2 + step.sigma**2
    gain = step.alpha * s**2 / total  # D = m + gain (x - alpha m)
    slope = step.alpha * gain + rho * (1 - step.alpha * gain)
    variance = slope**2 * total + step.sigma**2 * 0.36
    assert float(child.mean()) == pytest.approx(step.alpha * m, abs=5 * (total / count) ** 0.5)
    assert float(child.var()) == pytest.approx(variance, rel=5 * (2 / count) ** 0.5)


def test_no_fresh_noise_keeps_a_state_and_all_of_it_forgets_its_noise() -> None:
    found = children(EvoSearch(mutation=1e-4), "ddim", 5, 4, 8)
    torch.testing.assert_close(found["child"], found["x"], atol=1e-3, rtol=0)
    found = children(EvoSearch(mutation=1.0), "ddim", 5, 256, 32)
    step, x, x0, child = (found[k] for k in ("step", "x", "x0", "child"))
    before, after = ((y - step.alpha * x0) / step.sigma for y in (x, child))
    assert abs(float((before * after).mean())) < 4 * float(before.std()) / before.numel() ** 0.5


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "dpm++2m"])
def test_generations_begin_where_they_should_and_cost_what_is_left(scheduler: str) -> None:
    pipe = shared("sd", scheduler)
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=SMALL, lane_width=1)(
            **arguments("sd", num_inference_steps=STEPS)
        )
    assert agrees(seen, out.report)
    assert [(step, len(born)) for step, born in descent(out.report)] == [(None, 2), (3, 2)]
    assert out.report.ledger.denoiser_rows == SMALL.cost(STEPS) == 3 * 6 + 2 * 6 + 2 * 3
    assert out.report.ledger.reward_calls == SMALL.work(STEPS).scores == 7


def test_elites_and_children_are_the_parents_of_the_next() -> None:
    method = EvoSearch((5, 4, 4, 4), at=(0.0, 0.3, 0.6), elites=2, tournament=1.0)
    report = called(method).report
    rewards, population = finals(report), list(range(5))
    for _, born in descent(report):
        best = max(population, key=rewards.__getitem__)
        assert set(born.values()) == {best}  # the whole population is in every tournament
        population = sorted(population, key=lambda k: -rewards[k])[:2] + list(born)


def test_tournaments_of_one_ignore_the_rewards() -> None:
    """A share that is one particle: parents are drawn evenly from the population."""
    method = EvoSearch((4, 200), at=(0.5,), elites=1, tournament=0.25)
    counts = Counter(descent(called(method, num_inference_steps=2).report)[0][1].values())
    assert set(counts) == {0, 1, 2, 3}
    assert sum((n - 50) ** 2 / 50 for n in counts.values()) < 16.3  # chi-squared, 3 df, .001


def test_the_best_of_all_is_returned() -> None:
    report = called(SMALL, num_images_per_prompt=2).report
    rewards = finals(report)
    assert [k for _, k in report.chosen] == sorted(rewards, key=lambda k: -rewards[k])[:2]


def test_one_generation_is_best_of_n() -> None:
    alone = called(EvoSearch(3, at=(), elites=1))
    best = called(BestOfN(3))
    assert torch.equal(alone.images, best.images)


def test_a_planted_optimum_is_approached() -> None:
    """A narrow peak in 8-D, far from the mean: closer to it than best of N at the same rows."""
    data = Mixture([[0.0] * 8], [1.0])
    reward = on_points(lambda x: -(x - 1.5).square().sum(1), dim=3)

    def closest(method: Any) -> float:
        out = guided(Toy(data), reward, method=method)(
            [""] * 4, num_inference_steps=8, generator=seeded(2), output_type="pt"
        )
        return sum(out.rewards) / 4

    evolved = closest(EvoSearch((8, 8, 8), at=(0.0, 0.25), elites=2, mutation=0.3))
    assert evolved > closest(BestOfN(22))


@pytest.mark.parametrize("scheduler", ["euler_a", "dpm++2m"])
def test_lanes_do_not_matter(scheduler: str) -> None:
    given: dict[str, Any] = {"prompt": ["a", "b"], "num_images_per_prompt": 2}
    outs = [called(SMALL, scheduler, width, **given) for width in (1, 3)]
    assert outs[0].report.chosen == outs[1].report.chosen
    torch.testing.assert_close(outs[1].images, outs[0].images, rtol=1e-3, atol=1e-3)


def test_prompts_together_equal_prompts_apart() -> None:
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    both = called(SMALL, prompt=["a", "b"], generator=pair())
    for number, text in enumerate("ab"):
        alone = called(SMALL, prompt=text, generator=pair()[number])
        assert alone.rewards[0] == pytest.approx(both.rewards[number], abs=1e-5)
        assert alone.report.chosen[0][1] == both.report.chosen[number][1]


def test_on_flow_models() -> None:
    out = guided(shared("sd3"), redness, method=SMALL)(**arguments("sd3"))
    plain = guided(shared("sd3"), redness, method=BestOfN(1))(**arguments("sd3"))
    assert out.report.ledger.denoiser_rows == SMALL.cost(out.report.steps)
    assert out.rewards[0] >= plain.rewards[0] - 1e-5


def test_solvers_that_ask_twice_begin_at_whole_steps() -> None:
    report = called(EvoSearch((2, 2), at=(0.5,), elites=1), "heun").report
    ((step, _),) = descent(report)
    assert step == 6 and report.steps == 11  # the second call of a step begins none
    assert report.ledger.denoiser_rows <= EvoSearch((2, 2), at=(0.5,), elites=1).cost(11)


def test_solvers_that_cannot_begin_in_the_middle() -> None:
    with pytest.raises(UnsupportedSchedulerError, match="cannot begin at step"):
        called(SMALL, "pndm")
    out = called(EvoSearch((2, 2), at=(0.0,), elites=1), "pndm")
    assert len(descent(out.report)) == 1


def test_other_methods_around_it() -> None:
    out = called(Budget(2, SMALL))
    assert out.report.ledger.denoiser_rows <= 2 * STEPS
    out = called(Then(EvoSearch(2, at=(0.0,), elites=1), BestOfN(1)))
    assert len(out.rewards) == 1


def test_sizes_of_plans() -> None:
    plan = EvoSearch.for_compute(16, 20)
    assert plan.sizes[0] >= 8 and 15 * 20 < plan.cost(20) <= 16 * 20
    assert EvoSearch.for_compute(4, 20) == EvoSearch((2, 1, 1, 1), at=(0.4, 0.6, 0.8), elites=2)
    assert EvoSearch.for_compute(1, 20) == EvoSearch((1,), at=(), elites=1)
    assert plan.rows_at(20, [0]) == sum(plan.sizes[:2])
    assert plan.rows_at(20, range(20)) == plan.cost(20)


def test_one_step_evolves_noise() -> None:
    report = called(SMALL, num_inference_steps=1).report
    assert [step for step, _ in descent(report)] == [None, None]
    assert report.ledger.denoiser_rows == SMALL.cost(1) == 7


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 0}, "n=0"),
        ({"n": (4, 4)}, r"n=\(4, 4\) with at=.*one size for the first"),
        ({"n": 2}, "elites=3: the first generation has only 2"),
        ({"at": (0.5, 0.0)}, "at="),
        ({"at": (0.0, 1.0)}, "at="),
        ({"at": 0.5}, "at="),
        ({"elites": 0}, "elites=0"),
        ({"mutation": 0}, "mutation=0"),
        ({"mutation": 1.5}, "mutation=1.5"),
        ({"tournament": 0.0}, "tournament=0.0"),
    ],
)
def test_bad_input(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EvoSearch(**options)


def test_lists_become_tuples() -> None:
    listed = EvoSearch([4, 2], at=[0.5], elites=2)  # pyright: ignore[reportArgumentType]
    assert listed == EvoSearch((4, 2), at=(0.5,), elites=2)
