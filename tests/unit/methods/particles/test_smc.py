"""`SMC` in pipelines: invariance to batches, names and lines, families, and bad input."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from families import arguments, build, redness, seeded, shared

from steer.core.errors import UnsupportedPipelineError, UnsupportedSchedulerError
from steer.core.when import at, between, every
from steer.methods import SMC, BestOfN, Gate
from steer.pipeline.guided import guided
from steer.search.kernels.rho import Rho


KEEN = SMC(4, lam=4.0, when=every(2), ess=None)


@pytest.mark.sample(1, 2)
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "dpm++2m", "sde-dpm++"])
def test_lanes_do_not_matter(scheduler: str) -> None:
    """Lanes of 1, 3 and 8, with padding where they do not divide."""
    pipe = shared("sd", scheduler)
    method = SMC(8, lam=4.0, when=every(2), ess=None)
    outs = [
        guided(pipe, redness, method=method, lane_width=width)(
            **arguments("sd", num_inference_steps=6, prompt=["a", "b"])
        )
        for width in (1, 3, 8)
    ]
    for out in outs[1:]:
        assert out.report.chosen == outs[0].report.chosen
        assert out.rewards == pytest.approx(outs[0].rewards, abs=1e-5)
        torch.testing.assert_close(out.images, outs[0].images, rtol=1e-3, atol=1e-3)
    assert outs[0].report.ledger.denoiser_rows == 2 * method.cost(6)


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
@pytest.mark.parametrize("choose", ["best", "sample"])
def test_prompts_together_equal_prompts_apart(scheduler: str, choose: Any) -> None:
    method = SMC(4, lam=4.0, when=every(2), ess=0.9, choose=choose)
    steered = guided(shared("sd", scheduler), redness, method=method)
    both = steered(
        **arguments("sd", prompt=["a", "b"], num_inference_steps=6) | {"generator": _pair()}
    )
    for number, text in enumerate("ab"):
        alone = steered(
            **arguments("sd", prompt=text, num_inference_steps=6) | {"generator": _pair()[number]}
        )
        assert alone.rewards[0] == pytest.approx(both.rewards[number], abs=1e-5)
        assert alone.report.chosen[0][1] == both.report.chosen[number][1]


def _pair() -> list[torch.Generator]:
    return [seeded(1), seeded(2)]


def test_survivors_keep_their_names_and_copies_get_new_ones() -> None:
    out = guided(shared("sd", "euler_a"), redness, method=KEEN)(
        **arguments("sd", num_inference_steps=8)
    )
    trace = out.report.trace
    alive, seen = set(range(4)), set(range(4))
    for row in trace.of("select"):
        children, parents = row["particle"], row["ancestors"]
        assert set(parents) <= alive and len(set(children)) == 4
        born = [child for child, parent in zip(children, parents, strict=True) if child != parent]
        assert not set(born) & seen
        assert set(children) - set(born) == set(parents)  # everyone with children survives
        alive, seen = set(children), seen | set(born)
    assert {k for _, k in out.report.chosen} <= alive
    assert [row["step"] for row in trace.of("weights")] == [1, 3, 5, None]
    assert all(1 <= row["ess"] <= 4 + 1e-9 for row in trace.of("weights"))


@pytest.mark.parametrize("scheduler", ["euler_a", "sde-dpm++", "ddim"])
def test_without_selection_particles_are_the_pipelines_own(scheduler: str) -> None:
    """lam = 0 weighs nothing: with the solver's own noise, best of N; and one is the plain call."""
    pipe = shared("sd", scheduler)
    eta = {"eta": 1.0} if scheduler == "ddim" else {}
    given = lambda: arguments("sd", num_inference_steps=5, **eta)  # noqa: E731
    out = guided(pipe, redness, method=SMC(3, lam=0.0, ess=0.5))(**given())
    best = guided(pipe, redness, method=BestOfN(3))(**given())
    assert out.report.chosen == best.report.chosen
    assert torch.equal(out.images, best.images)
    assert torch.equal(guided(pipe, redness, method=SMC(1))(**given()).images, pipe(**given())[0])


def test_our_own_moves_leave_the_plain_particle_behind() -> None:
    """Under a deterministic solver particle 0 is not the plain image, so it is not called that."""
    out = guided(shared("sd", "ddim"), redness, method=KEEN)(**arguments("sd"))
    assert out.report.base_reward == [None]
    noisy = guided(shared("sd", "euler_a"), redness, method=SMC(4, lam=0.0))(**arguments("sd"))
    assert noisy.report.base_reward[0] is not None


def test_several_images_and_a_gate() -> None:
    steered = guided(shared("sd", "euler_a"), redness, method=Gate(KEEN, threshold=9, max_rounds=2))
    out = steered(**arguments("sd", num_images_per_prompt=2, num_inference_steps=6))
    assert len(out.images) == 2 and out.accepted == [False, False]
    assert out.report.ledger.denoiser_rows == 2 * Gate(KEEN, 9, 2).cost(6)
    assert len(set(out.report.chosen)) == 2


@pytest.mark.parametrize("family", ["sdxl", "sd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_and_types(family: str, dtype: torch.dtype) -> None:
    pipe = shared(family, "euler", dtype)
    out = guided(pipe, redness, method=KEEN)(**arguments(family))
    assert out.images.dtype == dtype and out.images.isfinite().all()
    assert out.report.ledger.denoiser_rows == KEEN.cost(4)


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize("kernel", ["auto", "ddim", Rho("constant", 0.4, inner=3)])
def test_flow_models_move_with_fresh_noise(family: str, kernel: Any) -> None:
    method = SMC(2, when=every(2), kernel=kernel)
    options = arguments(family, num_inference_steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        out = guided(shared(family), redness, method=method)(**options)
    assert out.images.isfinite().all()
    assert out.report.ledger.denoiser_rows == method.cost(10)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_one_particle_without_noise_is_the_plain_call(family: str) -> None:
    pipe, options = shared(family), arguments(family)
    plain = pipe(**{**options, "generator": seeded(0)}).images
    out = guided(pipe, redness, method=SMC(1, kernel="ode"))(**options)
    assert torch.equal(out.images, plain)


def test_insisting_on_a_solver_without_noise() -> None:
    with pytest.raises(UnsupportedSchedulerError, match="DDIMScheduler draws no noise"):
        guided(shared("sd"), redness, method=SMC(2, kernel="solver"))(**arguments("sd"))


def test_nothing_to_select_at() -> None:
    with pytest.raises(ValueError, match=r"when=at\(0\.2\) holds at no step of 1"):
        guided(shared("sd"), redness, method=SMC(2, when=at(0.2)))(
            **arguments("sd", num_inference_steps=1)
        )


def test_feature_caches_are_refused() -> None:
    pipe = build("sd", "euler_a")
    pipe.unet.is_cache_enabled = True
    with pytest.raises(UnsupportedPipelineError, match="feature cache"):
        guided(pipe, redness, method=SMC(4, when=every(2)), lane_width=4)(**arguments("sd"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 0}, "n=0"),
        ({"lam": -1.0}, "lam=-1.0"),
        ({"lam": float("inf")}, "lam=inf"),
        ({"when": 4}, "when=4.*step predicate"),
        ({"potential": "diff"}, "potential='diff'.*'difference'"),
        ({"resample": "greedy"}, "resample='greedy'.*'systematic'"),
        ({"ess": 1.5}, "ess=1.5"),
        ({"ess": -0.1}, "ess=-0.1"),
        ({"temper": 0.0}, "temper=0.0"),
        ({"temper": "hot"}, "temper='hot'"),
        ({"eta": 0.0}, "eta=0.0"),
        ({"eta": 1.5}, "eta=1.5"),
        ({"kernel": "glass"}, "kernel='glass'.*auto"),
        ({"proposal": 3}, "proposal=3"),
        ({"proposal": print, "kernel": "solver"}, "kernel='solver'"),
        ({"choose": "worst"}, "choose='worst'"),
    ],
)
def test_bad_input(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SMC(**{"n": 4, **options})


def test_repr_and_size() -> None:
    assert "when=(every(4) & between(0.25, 0.75))" in repr(
        SMC(4, when=every(4) & between(0.25, 0.75))
    )
    assert SMC.for_compute(8.9, 20).n == 8
    assert SMC(8).cost(20) == 160
