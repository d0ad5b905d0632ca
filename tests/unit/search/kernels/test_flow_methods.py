"""Searches of flow models by fresh noise: batches, prompts, and diffusers' own noisy schedulers."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, cast

import diffusers
import pytest
import torch
from families import arguments, build, redness, seeded, shared

from steer.core.errors import UnsupportedSchedulerError
from steer.core.when import at, every
from steer.driver.solver_state import ignores_generator
from steer.methods import RBF, SMC, Beam, Blockwise, Tree
from steer.methods.text import parse_method
from steer.pipeline.guided import guided
from steer.search.kernels.rho import Rho


GLASS = Rho("constant", 0.4, inner=3)
METHODS: dict[str, Any] = {
    "smc": SMC(3, lam=4.0, when=every(2), ess=None, kernel="flow-sde"),
    "smc-glass": SMC(3, lam=4.0, when=every(2), ess=None, kernel=GLASS),
    "beam": Beam(2, 2, kernel="flow-sde"),
    "beam-glass": Beam(1, 2, kernel=GLASS),
    "blockwise": Blockwise(2, 2, kernel="cps"),
    "blockwise-glass": Blockwise(2, 2, kernel=GLASS),
    "tree": Tree(3, batch=2, kernel="dance"),
}
NOISY: dict[str, Any] = {
    "stochastic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "lcm": lambda: diffusers.FlowMatchLCMScheduler(),
}
if ignores_generator(NOISY["stochastic"]()):
    del NOISY["stochastic"]
if hasattr(diffusers, "LTXEulerAncestralRFScheduler"):
    NOISY["ancestral"] = lambda: diffusers.LTXEulerAncestralRFScheduler()


@pytest.mark.parametrize("name", METHODS)
def test_lanes_do_not_matter(name: str) -> None:
    outs = [
        guided(shared("sd3"), redness, method=METHODS[name], lane_width=width)(
            **arguments("sd3", prompt=["a", "b"])
        )
        for width in (1, 3)
    ]
    assert outs[0].report.chosen == outs[1].report.chosen
    torch.testing.assert_close(outs[0].images, outs[1].images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["smc", "smc-glass", "beam", "blockwise", "tree"])
def test_prompts_together_equal_prompts_apart(name: str) -> None:
    method = METHODS[name]

    def images(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        call = arguments("sd3", prompt=prompts, generator=[seeded(seed) for seed in seeds])
        return guided(shared("sd3"), redness, method=method)(**call).images

    together = images(["a", "b"], [3, 5])
    apart = torch.cat([images(["a"], [3]), images(["b"], [5])])
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["beam-glass", "blockwise-glass"])
def test_inner_calls_are_counted(name: str) -> None:
    method = METHODS[name]
    out = guided(shared("flux"), redness, method=method)(**arguments("flux"))
    assert 0 <= method.cost(4) - out.report.ledger.denoiser_rows <= 2  # the first step's children
    assert out.images.isfinite().all()


@pytest.mark.parametrize(
    "method",
    [
        SMC(1, kernel="ode"),
        Beam(1, 1, kernel="ode"),
        Blockwise(1, kernel="ode"),
        Tree(1, batch=1, kernel="ode"),
    ],
)
def test_one_particle_without_noise_is_the_plain_call(method: Any) -> None:
    pipe = shared("sd3")
    plain = pipe(**arguments("sd3")).images
    assert torch.equal(guided(pipe, redness, method=method)(**arguments("sd3")).images, plain)


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("kernel", ["auto", "solver"])
def test_noisy_flow_schedulers_move_the_particles_themselves(name: str, kernel: str) -> None:
    """The plain call's own particle takes the plain call's steps; its pipeline gives no generator
    to the scheduler, so that they draw from the global one.
    """
    pipe = build("sd3")
    pipe.scheduler = NOISY[name]()
    call = partial(arguments, "sd3", num_inference_steps=6)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.manual_seed(5)
        plain = pipe(**call()).images
        torch.manual_seed(5)
        one = guided(pipe, redness, method=SMC(1, kernel=kernel))(**call())
        copies = SMC(4, lam=30.0, when=at(0.5), ess=None, kernel=kernel, choose="sample")
        four = guided(pipe, redness, method=copies)(**call(num_images_per_prompt=2))
    assert torch.equal(one.images, plain)
    assert not torch.equal(four.images[0], four.images[1])


@pytest.mark.parametrize("name", NOISY)
def test_drawing_all_noise_anew_in_many_steps_warns(name: str) -> None:
    pipe = build("sd3")
    pipe.scheduler = NOISY[name]()
    call = arguments("sd3", num_inference_steps=10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guided(pipe, redness, method=SMC(2))(**call)
    texts = [str(one.message) for one in caught]
    assert any("draws all noise anew" in text for text in texts) == (name != "ancestral")


def test_few_steps_of_a_flow_model_warn() -> None:
    with pytest.warns(UserWarning, match="4 steps of FlowMatchEuler.*'euler-ancestral' says"):
        guided(shared("sd3"), redness, method=SMC(2))(**arguments("sd3"))


@pytest.mark.parametrize(
    ("method", "error", "says"),
    [
        (SMC(2, eta=0.5), ValueError, r"eta=0\.5 with kernel='auto' on a flow model"),
        (
            SMC(2, kernel="solver"),
            UnsupportedSchedulerError,
            "draws no noise.*kernel='euler-ancestral'",
        ),
        (
            Beam(kernel=Rho(noise_window=(0.01, 0.02))),
            ValueError,
            r"Beam: noise_window=\(0\.01, 0\.02\) holds at no step",
        ),
    ],
)
def test_refused_before_sampling(method: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        guided(shared("sd3"), redness, method=method)(**arguments("sd3"))


@pytest.mark.parametrize("method", [Beam(), Blockwise(2), RBF(2), Tree(compute=4)])
def test_one_step_has_nothing_to_choose_between(method: Any) -> None:
    says = rf"{type(method).__name__}: num_inference_steps gives 1 step.*BestOfN"
    with pytest.raises(ValueError, match=says):
        guided(shared("sd3"), redness, method=method)(**arguments("sd3", num_inference_steps=1))


def test_inner_calls_on_other_models_are_refused() -> None:
    with pytest.raises(UnsupportedSchedulerError, match=r"only flow models.*inner=1"):
        guided(shared("sd"), redness, method=SMC(2, kernel=Rho(inner=2)))(**arguments("sd"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SMC(2, kernel="flow-sd"), r"kernel='flow-sd'.*did you mean 'flow-sde'"),
        (lambda: SMC(2, kernel="cps", eta=0.5), r"eta=0\.5 with kernel='cps'.*Rho\("),
        (lambda: Tree(2, kernel=GLASS), r"Tree counts one denoiser call.*inner=1"),
        (
            lambda: SMC(2, kernel=GLASS, proposal=cast(Any, print)),
            r"no density to correct by; use inner=1",
        ),
    ],
)
def test_bad_input(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_kernels_are_written_as_text() -> None:
    method = parse_method("SMC(8, kernel=Rho('cps', 0.5, noise_window=(0.2, 0.9)))")
    assert method == SMC(8, kernel=Rho("cps", 0.5, noise_window=(0.2, 0.9)))
