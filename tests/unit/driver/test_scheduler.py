"""The wrapped scheduler: what pipelines look at, and how a search drives their loop."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import diffusers
import pytest
import torch
from families import SCHEDULERS, arguments, build, redness, seeded, shared
from torch import Tensor

import steer
from steer.core.errors import UnsupportedPipelineError
from steer.core.ledger import Ledger
from steer.core.types import Population, Query
from steer.driver.loop import Driven, Opening
from steer.driver.scheduler import SteeredScheduler
from steer.driver.timeline import Timeline
from steer.methods import BestOfN
from steer.pipeline.guided import guided
from steer.search.method import Method


def never(opening: Opening) -> Driven:
    yield from ()
    return opening.latents


def steered(name: str) -> SteeredScheduler:
    return SteeredScheduler(SCHEDULERS[name](), never)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_mirrors_what_the_scheduler_has(name: str) -> None:
    plain, ours = SCHEDULERS[name](), steered(name)
    for attribute in ("scale_model_input", "add_noise", "scale_noise", "init_noise_sigma", "order"):
        assert hasattr(ours, attribute) == hasattr(plain, attribute)
    for method in ("set_timesteps", "step"):
        assert inspect.signature(getattr(ours, method)) == inspect.signature(getattr(plain, method))
    assert ours.config is not None
    assert dict(ours.config) == dict(plain.config)
    assert isinstance(ours, type(plain))
    assert len(ours) == len(plain)
    diffusers.DPMSolverMultistepScheduler.from_config(ours.config)
    assert type(copy.deepcopy(ours)) is type(plain)


def test_the_users_scheduler_is_not_touched() -> None:
    plain = SCHEDULERS["euler"]()
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(plain).items()}
    ours = SteeredScheduler(plain, never)
    ours.set_timesteps(3)
    ours.set_begin_index(0)
    ours.some_attribute = 1
    assert all(
        torch.equal(v, before[k]) if isinstance(v, Tensor) else v == before[k]
        for k, v in vars(plain).items()
    )


def test_a_noise_level_for_every_token_is_refused() -> None:
    ours = SteeredScheduler(diffusers.FlowMatchEulerDiscreteScheduler(), never)
    ours.set_timesteps(3)
    latents = torch.zeros(1, 4, 2)
    for t in ours.timesteps:
        levels = t.expand(1, 4)
        with pytest.raises(UnsupportedPipelineError, match="every token has a noise level"):
            ours.step(latents, t, latents, per_token_timesteps=levels)
        break


def test_timeline_is_a_tensor() -> None:
    ours = steered("ddim")
    ours.set_timesteps(6)
    line = ours.timesteps
    plain = line.as_subclass(Tensor)
    assert isinstance(line, Timeline)
    assert len(line) == 6
    for other in (line[2:], line.to("cpu"), line.clone(), line[2:].to(torch.device("cpu"))):
        assert isinstance(other, Timeline)
    for value in (line[0], line[:1].repeat(2), line + 1, line == 1, line.float()):
        assert not isinstance(value, Timeline)
    assert torch.equal(line[1:].as_subclass(Tensor), plain[1:])
    assert line.dtype == plain.dtype
    assert line.tolist() == plain.tolist()
    assert list(line) == list(plain)  # before the loop it is read like any tensor
    assert list(filter(lambda t: t > 500, line)) == [t for t in plain if t > 500]


def test_step_outputs() -> None:
    for return_dict in (True, False):
        ours = steered("ddim")
        ours.set_timesteps(2)
        x = torch.ones(1, 4, 2, 2)
        t = next(iter(ours.timesteps))
        result = ours.step(x, t, x, return_dict=return_dict)
        assert (result.prev_sample if return_dict else result[0]) is x


def test_step_without_the_timeline_is_refused() -> None:
    ours = steered("ddim")
    ours.set_timesteps(2)
    with pytest.raises(UnsupportedPipelineError, match="cannot be driven"):
        ours.step(torch.ones(1), torch.tensor(1), torch.ones(1))


def drive(pipe: Any, search: Any, **given: Any) -> tuple[Any, Ledger]:
    """A pipeline call with a bare search in its loop."""
    kept, ledger = pipe.scheduler, Ledger()
    pipe.scheduler = SteeredScheduler(kept, search, ledger)
    try:
        return pipe(**given).images, ledger
    finally:
        pipe.scheduler = kept


@pytest.mark.parametrize("name", ["euler", "kdpm2"])
def test_queries_anywhere_on_the_grid(name: str) -> None:
    """Back in time, twice the same, any order: the answer is the denoiser's output there."""
    pipe = shared("sd", name)
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(opening: Opening) -> Driven:
        x = opening.latents
        for step in opening.schedule:
            seen[step.index] = (x, (yield Query(x, step)))
            x = x * 0.9
        return x

    drive(pipe, forward, **arguments("sd"))

    def jumping(opening: Opening) -> Driven:
        for index in (3, 0, 2, 2, 1):
            x, expected = seen[index]
            output = yield Query(x, opening.schedule[index])
            assert torch.equal(output, expected)
        return opening.latents

    _, ledger = drive(pipe, jumping, **arguments("sd"))
    assert ledger.denoiser_calls == 6  # the pipeline's first call was not what it asked first


def test_a_search_may_return_other_rows_than_it_ran() -> None:
    def first_only(opening: Opening) -> Driven:
        yield Query(opening.latents, opening.schedule[0])
        return opening.latents[:1]

    images, _ = drive(shared("sd"), first_only, **arguments("sd", num_images_per_prompt=3))
    assert len(images) == 1


def test_gradients_reach_the_latents_and_the_mode_is_restored() -> None:
    """d(output)/d(latents) through the pipeline's loop equals autograd through the UNet."""
    pipe = build("sd", "ddim")
    modes: list[bool] = []
    found: list[Tensor] = []

    def climb(opening: Opening) -> Driven:
        x = opening.latents.detach().requires_grad_()
        for step in (opening.schedule[0], opening.schedule[2]):
            output = yield Query(x, step, grad=True)
            modes.append(torch.is_grad_enabled())
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(output.square().sum(), x)
            found.append(gradient)
        plain = yield Query(x, opening.schedule[1])
        assert not plain.requires_grad
        return x.detach()

    drive(pipe, climb, **arguments("sd"))
    assert modes == [False, False]
    assert torch.is_grad_enabled()
    generator = seeded(0)
    x = torch.randn(1, 4, 8, 8, generator=generator).requires_grad_()
    positive, negative = pipe.encode_prompt("a red circle", "cpu", 1, True)
    pipe.scheduler.set_timesteps(4)
    for gradient, t in zip(found, pipe.scheduler.timesteps[[0, 2]], strict=True):
        pair = pipe.unet(torch.cat([x, x]), t, torch.cat([negative, positive])).sample
        base, text = pair.chunk(2)
        (expected,) = torch.autograd.grad((base + 7.5 * (text - base)).square().sum(), x)
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_the_searchs_own_grad_mode_is_kept_inside_it() -> None:
    inside: list[bool] = []
    outside: list[bool] = []

    def search(opening: Opening) -> Driven:
        with torch.enable_grad():
            for step in opening.schedule:
                yield Query(opening.latents, step)
                inside.append(torch.is_grad_enabled())
        return opening.latents

    def watch(pipe: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        outside.append(torch.is_grad_enabled())
        return tensors

    drive(shared("sd"), search, **arguments("sd", callback_on_step_end=watch))
    assert set(inside) == {True}
    assert set(outside) == {False}


def test_grad_mode_after_an_error_in_a_recorded_call() -> None:
    pipe = build("sd")

    def search(opening: Opening) -> Driven:
        x = opening.latents.detach().requires_grad_()
        yield Query(x, opening.schedule[1], grad=True)
        raise RuntimeError("inside")

    with torch.no_grad():
        with pytest.raises(RuntimeError, match="inside"):
            drive(pipe, search, **arguments("sd"))
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_context_gradients_through_lanes() -> None:
    """A population of three through a lane of one: the same gradient as through a lane of three."""
    gradients = []

    class Climb(Method):
        n = 3

        def cost(self, steps: int) -> int:
            return 7

        def __call__(self, ctx: Any, start: Population) -> Any:
            x = start.x.detach().requires_grad_()
            output = yield from ctx.denoise(start.at(x), ctx.steps[1], grad=True)
            with torch.enable_grad():
                gradients.append(torch.autograd.grad(output.square().sum(), x)[0])
            return start.take([0])

    reports = [
        guided(shared("sd"), redness, method=Climb(), lane_width=w)(**arguments("sd")).report
        for w in (1, 3)
    ]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)
    assert [r.ledger.backward_rows for r in reports] == [3, 3]


def test_interrupt_ends_the_loop() -> None:
    def stop(pipe: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = i == 1
        return tensors

    given = arguments("sd", callback_on_step_end=stop, num_images_per_prompt=2)
    ours = guided(build("sd"), redness, method=BestOfN(2), lane_width=2)(**given)
    assert len(ours.images) == 2
    assert ours.report.interrupted
    assert ours.accepted == [False, False]
    assert ours.report.ledger.denoiser_calls == 2


def test_bare_drop_in() -> None:
    pipe = build("sd", "dpm++2m")
    kept = pipe.scheduler
    expected = guided(pipe, redness, method=BestOfN(3), lane_width=1)(**arguments("sd"))
    pipe.scheduler = steer.drop_in(pipe, reward=redness, prompt="a red circle", method=BestOfN(3))
    for _ in range(2):  # any number of calls
        best = pipe(**arguments("sd")).images
        assert best.shape == expected.images.shape
        assert pipe.scheduler.loop.ledger.denoiser_rows in (12, 24)
    pipe.scheduler = kept
    assert pipe.scheduler is kept
