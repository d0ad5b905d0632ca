"""`Beam` in pipelines: cost, invariance to batches, descent, families, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted_work import agrees, counting
from families import arguments, build, redness, seeded, shared
from hypothesis import given, settings, strategies as st

from steer.core.errors import UnsupportedPipelineError, UnsupportedSchedulerError
from steer.core.when import at, between, every
from steer.methods import Beam, BestOfN, Budget, Gate
from steer.pipeline.guided import guided


@pytest.mark.parametrize(
    ("method", "steps", "rows"),
    [
        (Beam(1, 1), 20, 20),
        (Beam(2, 2), 20, 2 + 19 * 4),  # the first call, then every candidate
        (Beam(4, 2, lookahead=3), 20, 4 + 17 * 8 * 3 + 8 * 2 + 8),  # fewer left at the end
        (Beam(4, 2, when=at(0.5)), 20, 4 * 20 + 4),
        (Beam((4, 2), 2), 5, 4 + 8 + 8 + 8 + 4),  # 4 beams, after two selections 4, then 2
        (Beam((1, 2, 4, 8), 2), 4, 1 + 2 + 4 + 8),
        (Beam(3, 2), 1, 3),
    ],
)
def test_cost(method: Beam, steps: int, rows: int) -> None:
    assert method.cost(steps) == rows


@settings(deadline=None, max_examples=200)
@given(st.floats(1, 40), st.integers(1, 120))
def test_plans_never_exceed_compute(compute: float, steps: int) -> None:
    assert Beam.for_compute(compute, steps).cost(steps) <= compute * steps + 1e-6


@pytest.mark.parametrize(
    "method",
    [Beam(2, 3, lookahead=2), Beam((4, 2, 1), 2), Beam(2, 2, when=every(2) & between(0.2, 0.8))],
)
def test_work_is_counted_as_it_is_done(method: Beam) -> None:
    pipe = shared("sd", "euler_a")
    with counting(pipe) as seen:
        given_ = arguments("sd", num_inference_steps=6, prompt=["a", "b"])
        out = guided(pipe, redness, method=method, lane_width=1)(**given_)
    assert agrees(seen, out.report)
    assert out.report.ledger.denoiser_rows == 2 * method.cost(6)


@pytest.mark.sample(0, 1)
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "sde-dpm++"])
def test_lanes_do_not_matter(scheduler: str) -> None:
    pipe, method = shared("sd", scheduler), Beam(3, 2, lookahead=2)
    outs = [
        guided(pipe, redness, method=method, lane_width=width)(
            **arguments("sd", num_inference_steps=5, prompt=["a", "b"])
        )
        for width in (1, 3, 8)
    ]
    for out in outs[1:]:
        assert out.report.chosen == outs[0].report.chosen
        torch.testing.assert_close(out.images, outs[0].images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_prompts_together_equal_prompts_apart(scheduler: str) -> None:
    steered = guided(shared("sd", scheduler), redness, method=Beam(2, 2))
    pair = lambda: [seeded(1), seeded(2)]  # noqa: E731
    both = steered(**arguments("sd", prompt=["a", "b"], generator=pair()))
    for number, text in enumerate("ab"):
        alone = steered(**arguments("sd", prompt=text, generator=pair()[number]))
        assert alone.rewards[0] == pytest.approx(both.rewards[number], abs=1e-5)
        assert alone.report.chosen[0][1] == both.report.chosen[number][1]


def test_the_best_candidates_go_on() -> None:
    out = guided(shared("sd", "euler_a"), redness, method=Beam(2, 3))(
        **arguments("sd", num_inference_steps=5)
    )
    trace = out.report.trace
    chosen = [row for row in trace.of("select") if "kept" in row]
    born = [row for row in trace.of("select") if "ancestors" in row]
    scores = [row for row in trace.of("score") if row["preview"]]
    assert [row["step"] for row in born] == [0, 1, 2, 3]
    assert [row["step"] for row in chosen] == [row["step"] for row in scores] == [1, 2, 3, 4]
    alive, seen = {0, 1}, {0, 1}
    for branch, score, select in zip(born, scores, chosen, strict=True):
        assert set(branch["ancestors"]) == alive and score["particle"] == branch["particle"]
        assert alive <= set(branch["particle"])  # first children keep the names
        new = set(branch["particle"]) - alive
        assert len(new) == 4 and not new & seen
        ranked = sorted(
            score["particle"], key=lambda k, s=score: -s["reward"][s["particle"].index(k)]
        )
        alive, seen = set(select["kept"]), seen | new
        assert alive == set(ranked[:2])
    assert out.report.chosen[0][1] in alive


@pytest.mark.parametrize("scheduler", ["euler_a", "sde-dpm++", "ddim"])
def test_without_branching_beams_are_the_pipelines_own(scheduler: str) -> None:
    pipe = shared("sd", scheduler)
    eta = {"eta": 1.0} if scheduler == "ddim" else {}
    out = guided(pipe, redness, method=Beam(3, 1))(**arguments("sd", **eta))
    best = guided(pipe, redness, method=BestOfN(3))(**arguments("sd", **eta))
    assert out.report.chosen == best.report.chosen
    assert torch.equal(out.images, best.images)


def test_several_images_a_gate_and_a_budget() -> None:
    method = Gate(Beam(2, 2), threshold=9, max_rounds=2)
    steered = guided(shared("sd", "euler_a"), redness, method=method)
    out = steered(**arguments("sd", num_images_per_prompt=2, num_inference_steps=6))
    assert len(out.images) == 2 and len(set(out.report.chosen)) == 2
    assert out.report.ledger.denoiser_rows == 2 * method.cost(6)
    tight = guided(shared("sd", "euler_a"), redness, method=Budget(2, Beam(4, 2)))
    assert tight(**arguments("sd")).report.ledger.denoiser_rows <= 2 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_and_types(dtype: torch.dtype) -> None:
    out = guided(shared("sdxl", "euler", dtype), redness, method=Beam(2, 2, lookahead=2))(
        **arguments("sdxl")
    )
    assert out.images.dtype == dtype and out.images.isfinite().all()
    assert out.report.base_reward == [None]  # our own moves: not the plain call's particle


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_steps_without_noise_do_not_branch(family: str) -> None:
    """The first step of a flow model: children would be equal, and only cost."""
    method = Beam(2, 2, kernel="flow-sde")
    out = guided(shared(family), redness, method=method)(**arguments(family))
    selected = {row["step"] for row in out.report.trace.of("select")}
    assert 0 not in selected and 1 in selected
    assert out.report.ledger.denoiser_rows == method.cost(4) - 2  # two children of the first step
    assert out.images.isfinite().all()


def test_nothing_would_branch() -> None:
    method = Beam(2, 2, kernel="ode")
    with pytest.raises(ValueError, match=r"kernel='ode' draws noise, so nothing would branch"):
        guided(shared("sd3"), redness, method=method)(**arguments("sd3"))


def test_insisting_on_a_solver_without_noise() -> None:
    with pytest.raises(UnsupportedSchedulerError, match="DDIMScheduler draws no noise"):
        guided(shared("sd"), redness, method=Beam(kernel="solver"))(**arguments("sd"))


def test_nothing_to_branch_at() -> None:
    with pytest.raises(ValueError, match=r"when=at\(1\.0\) holds at no step of 4 before the last"):
        guided(shared("sd"), redness, method=Beam(when=at(1.0)))(**arguments("sd"))


def test_feature_caches_are_refused() -> None:
    pipe = build("sd", "euler_a")
    pipe.unet.is_cache_enabled = True
    with pytest.raises(UnsupportedPipelineError, match="feature cache"):
        guided(pipe, redness, method=Beam(4, 1), lane_width=4)(**arguments("sd"))


class Recorded:
    grad = True

    def __call__(self, *_: Any) -> Any: ...


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"beams": 0}, "beams=0"),
        ({"beams": []}, r"beams=\(\)"),
        ({"beams": (4, 2.5)}, "beams=2.5"),
        ({"candidates": 0}, "candidates=0"),
        ({"lookahead": 0}, "lookahead=0.*lookahead=1"),
        ({"when": 4}, "when=4.*step predicate"),
        ({"eta": 0.0}, "eta=0.0"),
        ({"eta": 1.5}, "eta=1.5"),
        ({"kernel": "glass"}, "kernel='glass'.*auto"),
        ({"kernel": Recorded()}, r"recorded denoiser calls.*SMC\(proposal"),
    ],
)
def test_bad_input(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Beam(**options)


def test_bad_compute() -> None:
    with pytest.raises(ValueError, match=r"compute=0\.5"):
        Beam.for_compute(0.5, 20)
