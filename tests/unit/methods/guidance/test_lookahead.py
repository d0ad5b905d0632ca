"""`LookaheadGuidance` and `LookaheadSet`: identity, invariance, families, files, bad input."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from counted_work import agrees, counting, reddish
from families import arguments, redness, seeded, shared

from steer.core.when import at, every
from steer.methods import BestOfN, Gate, LookaheadGuidance, Then
from steer.pipeline.guided import guided
from steer.pipeline.lookahead_runs import lookaheads
from steer.search.lookahead import LookaheadSet, standardise


KEEN = LookaheadGuidance(2, lookaheads=6, through=2, lam=1000.0, when=every(1))


def settings(**more: Any) -> dict[str, Any]:
    """What a call of the tiny pipeline is given besides prompt and generator."""
    given = arguments("sd", **more)
    return {k: v for k, v in given.items() if k not in ("prompt", "generator")}


@pytest.fixture(scope="module")
def ahead() -> LookaheadSet:
    steered = guided(shared("sd"), redness)
    return lookaheads(steered, ["a", "b", "a"], n=5, through=2, **settings())


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("options", [{"lam": 0.0}, {"strength": 0.0}])
def test_without_strength_it_is_the_plain_call(family: str, options: dict[str, float]) -> None:
    pipe = shared(family)
    method = LookaheadGuidance(1, **options)
    out = guided(pipe, redness, method=method)(**arguments(family))
    assert torch.equal(out.images, pipe(**arguments(family)).images)
    assert out.report.ledger.denoiser_rows == method.cost(4) == 4


def test_equal_rewards_change_nothing() -> None:
    """No reward is better than another, so no lookahead is: best of N, bit for bit."""
    pipe = shared("sd", "euler_a")
    constant = lambda images, prompts: images.mean((1, 2, 3)) * 0 + 0.25  # noqa: E731
    out = guided(pipe, constant, method=KEEN)(**arguments("sd"))
    best = guided(pipe, constant, method=BestOfN(2))(**arguments("sd"))
    assert torch.equal(out.images, best.images)


def test_an_empty_window_warns() -> None:
    method = LookaheadGuidance(1, when=at(9))
    with pytest.warns(UserWarning, match="holds at no step"):
        out = guided(shared("sd"), redness, method=method)(**arguments("sd"))
    assert torch.equal(out.images, shared("sd")(**arguments("sd")).images)
    assert out.report.ledger.denoiser_rows == 4


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        *[("sd", name) for name in ("ddim", "euler_a", "dpm++2m", "unipc", "heun", "pndm")],
        ("sdxl", "euler"),
        ("sd3", None),
        ("flux", None),
    ],
)
def test_families_and_solvers(family: str, scheduler: Any) -> None:
    pipe = shared(family, scheduler)
    with counting(pipe) as seen:
        out = guided(pipe, redness, method=KEEN)(**arguments(family))
    assert agrees(seen, out.report) and out.images.isfinite().all()
    ledger, steps = out.report.ledger, out.report.steps
    assert ledger.denoiser_rows == 2 * steps + 6 * 2
    assert ledger.decodes == 6 + 2 and ledger.backward_rows == 0
    (row,) = out.report.trace.of("lookahead")
    assert len(set(row["particle"])) == len(row["reward"]) == 6
    assert row["particle"][:2] == [0, 1]
    assert out.report.base_reward == [None]


@pytest.mark.sample(1, 2)
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "dpm++2m"])
def test_lanes_do_not_matter(scheduler: str) -> None:
    """In float64: a strength of 8 raises float32's rounding to hundredths."""
    method = LookaheadGuidance(8, lookaheads=8, through=2)
    outs = [
        guided(shared("sd", scheduler, torch.float64), redness, method=method, lane_width=width)(
            **arguments("sd", prompt=["a", "b"])
        )
        for width in (1, 3, 8)
    ]
    for out in outs[1:]:
        assert out.report.chosen == outs[0].report.chosen
        assert out.rewards == pytest.approx(outs[0].rewards, abs=1e-9)
        torch.testing.assert_close(out.images, outs[0].images, rtol=1e-9, atol=1e-9)


def test_prompts_together_equal_prompts_apart() -> None:
    steered = guided(shared("sd", "euler_a"), redness, method=KEEN)
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    both = steered(**arguments("sd", prompt=["a", "b"]) | {"generator": pair()})
    for number, text in enumerate("ab"):
        alone = steered(**arguments("sd", prompt=text) | {"generator": pair()[number]})
        assert alone.rewards[0] == pytest.approx(both.rewards[number], abs=1e-5)
        assert alone.report.chosen[0][1] == both.report.chosen[number][1]


def test_rounds_images_and_what_comes_before() -> None:
    """Every round of a gate looks ahead from other noises; `Then` hands its noise on."""
    pipe = shared("sd")
    gate = Gate(LookaheadGuidance(1, lookaheads=3, through=1), threshold=9, max_rounds=2)
    out = guided(pipe, redness, method=gate)(**arguments("sd", num_images_per_prompt=2))
    first, second = out.report.trace.of("lookahead")
    assert not set(first["reward"]) & set(second["reward"]) and len(first["reward"]) == 6
    assert out.report.ledger.denoiser_rows == 2 * gate.cost(4)
    out = guided(pipe, redness, method=Then(BestOfN(2), KEEN.__class__(1, lookaheads=2)))(
        **arguments("sd")
    )
    assert len(out.report.trace.of("lookahead")) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    out = guided(shared("sdxl", dtype=dtype), redness, method=KEEN)(**arguments("sdxl"))
    assert out.images.dtype == dtype and out.images.isfinite().all()


def test_a_set_serves_any_number_of_seeds(ahead: LookaheadSet, tmp_path: Path) -> None:
    assert list(ahead.latents) == ["a", "b"] and len(ahead.rewards["a"]) == 5
    path = tmp_path / "ahead.safetensors"
    ahead.save(path)
    again = LookaheadSet.load(path)
    assert repr(again) == repr(ahead) == "LookaheadSet(2 prompts x [5], reward='redness')"
    for prompt in "ab":
        assert torch.equal(again.latents[prompt], ahead.latents[prompt])
        assert torch.equal(again.rewards[prompt], ahead.rewards[prompt])
    images = []
    for lookahead in (ahead, str(path)):
        method = LookaheadGuidance(2, lookahead=lookahead, when=every(1))
        with counting(shared("sd")) as seen:
            out = guided(shared("sd"), redness, method=method)(**arguments("sd", prompt="b"))
        assert agrees(seen, out.report)
        assert out.report.ledger.denoiser_rows == method.cost(4) == 8
        images.append(out.images)
    assert torch.equal(*images)


def test_a_set_is_what_a_call_would_see(ahead: LookaheadSet) -> None:
    """The same noise, steps and reward: the short run's own rewards."""
    method = LookaheadGuidance(1, lookaheads=1, through=2)
    out = guided(shared("sd"), redness, method=method)(**arguments("sd", prompt="b") | {
        "generator": seeded(1)})  # fmt: skip
    (row,) = out.report.trace.of("lookahead")
    assert row["reward"][0] == pytest.approx(float(ahead.rewards["b"][0]), abs=1e-5)


def test_sets_that_do_not_fit(ahead: LookaheadSet, tmp_path: Path) -> None:
    def call(pipe: Any, reward: Any, lookahead: LookaheadSet, **more: Any) -> None:
        method = LookaheadGuidance(1, lookahead=lookahead)
        guided(pipe, reward, method=method)(**arguments("sd", **more))

    with pytest.raises(ValueError, match="no samples of prompt 'a red circle'"):
        call(shared("sd"), redness, ahead)
    with pytest.raises(ValueError, match=r"judged by reward 'redness'.*optimises 'reddish'"):
        call(shared("sd"), reddish, ahead, prompt="a")
    narrow = replace(ahead, latents={k: v[..., :4] for k, v in ahead.latents.items()})
    with pytest.raises(ValueError, match=r"latents of prompt 'a' are \(4, 8, 4\).*\(4, 8, 8\)"):
        call(shared("sd"), redness, narrow, prompt="a")
    (tmp_path / "text").write_text("no tensors")
    for path in (tmp_path / "text", tmp_path / "nothing"):
        with pytest.raises(ValueError, match="cannot be read as a lookahead set"):
            LookaheadGuidance(1, lookahead=path)
    with pytest.raises(ValueError, match="must be finite"):
        replace(ahead, rewards={k: v * math.nan for k, v in ahead.rewards.items()})
    with pytest.raises(ValueError, match=r"\(m, \*latent\)"):
        replace(ahead, rewards={k: v[:2] for k, v in ahead.rewards.items()})
    with pytest.raises(ValueError, match="same prompts"):
        replace(ahead, rewards={"a": ahead.rewards["a"]})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 0}, "n=0"),
        ({"through": 0}, "through=0"),
        ({"prompts": "a"}, "prompts='a'"),
        ({"prompts": []}, r"prompts=\[\]"),
        ({"generator": seeded(0)}, "generator: set by lookaheads"),
    ],
)
def test_bad_calls_of_lookaheads(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        lookaheads(guided(shared("sd"), redness), **{"prompts": ["a"], **options})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 0}, "n=0"),
        ({"lookaheads": 0}, "lookaheads=0"),
        ({"through": 1.5}, "through=1.5"),
        ({"lam": -1.0}, "lam=-1.0"),
        ({"strength": math.nan}, "strength=nan"),
        ({"when": 0.8}, "when=0.8.*step predicate"),
        ({"lookahead": 3}, "lookahead=3"),
    ],
)
def test_bad_input(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LookaheadGuidance(**options)


def test_cost_and_standardised_rewards() -> None:
    assert LookaheadGuidance(2, lookaheads=10, through=4).cost(20) == 80
    assert LookaheadGuidance(2, lookaheads=10, through=4).cost(3) == 2 * 3 + 10 * 3
    plan = LookaheadGuidance.for_compute(4, 20)
    assert (plan.n, plan.lookaheads) == (1, 7) and plan.cost(20) == 76
    with pytest.raises(ValueError, match=r"compute=1\.0: .* needs 1\.8 plain calls"):
        LookaheadGuidance.for_compute(1.0, 20)
    values = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    assert float(standardise(3 * values + 7).std(correction=0)) == pytest.approx(1)
    assert not standardise(torch.full((4,), 0.3)).any()
