"""`Adaptive`: who stops when, what it costs, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import arguments, redness, seeded, shared
from torch import Tensor

from steer.core.errors import ThresholdError
from steer.methods import Adaptive, BestOfN, Budget, Gate
from steer.pipeline.guided import guided
from steer.rewards import Prior, reward
from steer.rewards.combine.ensemble import RankEnsemble


PROMPTS = ["a red fox", "two blue cats", "a tree", "the sea"]


def _run(method: Any, prompt: Any = "a red fox", score: Any = redness, **given: Any) -> Any:
    lane_width = given.pop("lane_width", None)
    call = arguments("sd", prompt=prompt, **given)
    if isinstance(prompt, list) and "num_images_per_prompt" not in given:
        call["generator"] = [seeded(i) for i in range(len(prompt))]
    return guided(shared("sd"), score, method=method, lane_width=lane_width)(**call)


def _drawn(out: Any) -> list[int]:
    return [event["drawn"] for event in out.report.trace.of("stop")]


def easy(images: Tensor, prompts: list[str]) -> Tensor:
    """Redness that hardly differs for the fox, and much for all others."""
    red = images[:, 0].mean((1, 2))
    scale = torch.tensor([0.001 if "fox" in text else 1.0 for text in prompts])
    return red * scale.to(red)


def test_one_candidate_is_the_plain_call() -> None:
    plain = shared("sd")(**arguments("sd", prompt="a red fox", output_type="pt")).images
    out = _run(Adaptive(1), output_type="pt")
    assert torch.equal(out.images, plain)
    assert out.report.ledger.reward_calls == 1


def test_free_candidates_are_best_of_n() -> None:
    best, out = _run(BestOfN(7)), _run(Adaptive(7, price=0))
    assert (out.rewards, out.report.chosen) == (best.rewards, best.report.chosen)
    assert _drawn(out) == [7]


def test_a_price_that_nothing_is_worth() -> None:
    """From the third reward on a spread is known; with a prior, from the first."""
    assert _drawn(_run(Adaptive(9, price=50.0, least=2, batch=1))) == [3]
    prior = Prior(mean=0.5, sd=0.01)
    assert _drawn(_run(Adaptive(9, price=50.0, prior=prior, least=1))) == [1]


def test_a_prior_that_expects_more_draws_more() -> None:
    plain = _run(BestOfN(1)).rewards[0]
    modest, hopeful = Prior(plain, 0.001), Prior(5.0, 0.5, weight=50.0)
    drawn = [_drawn(_run(Adaptive(9, 1.0, prior, least=1)))[0] for prior in (modest, hopeful)]
    assert drawn == [1, 9]


def test_a_replay_of_best_of_n_stops_at_the_same_place() -> None:
    """The rule on recorded rewards, as `benchmarks/adaptive.py` has it, is the method itself."""
    method = Adaptive(12, price=0.3, least=2, batch=1)
    (scores,) = _run(BestOfN(12), lane_width=12).report.trace.of("score")
    drawn, rule = 2, method.rule()
    while rule.more({0: scores["reward"][:drawn]}, {0: drawn}):
        drawn += 1
    assert _drawn(_run(method)) == [drawn]
    assert 2 < drawn < 12


def test_easy_prompts_stop_and_leave_the_lanes() -> None:
    method = Adaptive(9, price=1e-4, unit="reward", least=3, batch=2)
    out = _run(method, ["a red fox", "a tree"], easy)
    fox, tree = _drawn(out)
    assert fox == 3 < tree
    assert out.report.ledger.denoiser_rows == (fox + tree) * out.report.steps


@pytest.mark.sample
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("images", [1, 2])
def test_any_lane_width_gives_the_same(share: bool, images: int) -> None:
    method = Adaptive(5, price=0.1, least=2, batch=2, share=share)
    runs = [
        _run(method, PROMPTS, easy, lane_width=width, num_images_per_prompt=images)
        for width in (1, 2, 5)
    ]
    assert len({tuple(_drawn(run)) for run in runs}) == 1
    assert len({tuple(run.report.chosen) for run in runs}) == 1
    for run in runs[1:]:
        assert run.rewards == pytest.approx(runs[0].rewards, abs=1e-5)


@pytest.mark.sample
@pytest.mark.parametrize("price", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("least", [1, 4, 9])
def test_never_more_than_n(price: float, least: int) -> None:
    method = Adaptive(5, price=price, least=least, batch=3)
    out = _run(method, PROMPTS, easy)
    assert max(_drawn(out)) <= 5
    assert out.report.ledger.denoiser_rows <= len(PROMPTS) * method.cost(out.report.steps)


def test_a_shared_budget_goes_where_it_helps() -> None:
    prior = Prior(0.5, 1e-4, weight=1e-9, freedom=2.1)
    method = Adaptive(4, price=0, prior=prior, least=3, batch=1, share=True)
    out = _run(method, ["a red fox", "a tree", "a red fox", "the sea"], easy)
    drawn = _drawn(out)
    assert sum(drawn) == 16
    assert drawn[0] == drawn[2] == 3
    assert max(drawn) <= method.draws == 16


def test_of_several_images_the_worst_must_be_good_enough() -> None:
    rule = Adaptive(20, price=0.1, prior=Prior(0.0, 1.0, 1e4, 1e4), batch=1).rule
    assert rule(1).more({0: [3.0, -1.0]}, {0: 2}) == {}
    assert rule(2).more({0: [3.0, -1.0]}, {0: 2}) == {0: 2}
    assert rule(2).more({0: [3.0, 2.9]}, {0: 2}) == {}


def test_flagged_images_do_not_count() -> None:
    rule = Adaptive(20, price=0.1, prior=Prior(0.0, 1.0, 1e4, 1e4)).rule()
    assert rule.more({0: []}, {0: 2}) == {0: 2}


def test_nothing_is_remembered_between_calls() -> None:
    run = guided(shared("sd"), easy, method=Adaptive(6, price=0.05))
    call = arguments("sd", prompt=PROMPTS)
    first = [run(**{**call, "generator": seeded(1)}) for _ in range(2)]
    assert _drawn(first[0]) == _drawn(first[1])
    assert first[0].rewards == first[1].rewards


def test_rewards_that_never_differ_stop() -> None:
    def equal(images: Tensor, prompts: list[str]) -> Tensor:
        return images.new_zeros(len(images))

    assert _drawn(_run(Adaptive(9, batch=1), score=equal)) == [3]


@pytest.mark.parametrize(
    "wrap", [lambda m: Gate(m, 1e9, 2), lambda m: Budget(3, m)], ids=["gate", "budget"]
)
def test_inside_other_methods(wrap: Callable[[Any], Any]) -> None:
    method = wrap(Adaptive(4, price=0.1))
    out = _run(method, PROMPTS, easy)
    names = [name for row in out.report.trace.of("score") for name in row["particle"]]
    assert len(out.rewards) == len(PROMPTS) and max(names) < 8
    assert out.report.ledger.denoiser_rows <= method.cost(out.report.steps) * len(PROMPTS)


def test_a_prior_of_another_reward() -> None:
    prior = Prior(0.3, 0.02, reward="hpsv2.1")
    with pytest.raises(ThresholdError, match=r"'hpsv2\.1'.*redness"):
        _run(Adaptive(4, prior=prior))


def test_a_reward_that_only_ranks() -> None:
    ranks = RankEnsemble([(reward(redness), 1.0), (reward(easy), 1.0)], ["a", "b"])
    with pytest.raises(ValueError, match=r"price=0\.05 cannot be held against"):
        _run(Adaptive(4), score=ranks)


def test_a_saved_prior(tmp_path: Path) -> None:
    prior = Prior.fit({"a": [0.1, 0.2, 0.4], "b": [0.2, 0.7]})
    prior.save(tmp_path / "prior.json")
    assert Adaptive(4, prior=str(tmp_path / "prior.json")) == Adaptive(4, prior=prior)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 2.5}, "n=2.5"),
        ({"price": -0.1}, "price=-0.1"),
        ({"price": float("nan")}, "price=nan"),
        ({"price": None}, "price=None"),
        ({"least": 0}, "least=0"),
        ({"batch": True}, "batch=True"),
        ({"unit": "sds"}, "unit='sds'"),
        ({"share": 2}, "share=2"),
        ({"prior": 0.3}, "prior=0.3"),
        ({"prior": "nowhere.json"}, r"nowhere\.json.*cannot be read"),
    ],
)
def test_bad_input(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Adaptive(**{"n": 4, **given})
