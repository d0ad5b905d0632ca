"""Loops that end before the noise does: latents for another pipeline are judged by their x0."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from families import BETAS, arguments, build, redness
from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.core.types import Step
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.decode import decode
from steer.methods import (
    RBF,
    SMC,
    Beam,
    BestOfN,
    Blockwise,
    DepthFirst,
    EvoSearch,
    Guide,
    LookaheadGuidance,
    NoiseOptimization,
    NoiseSearch,
    Prune,
    Tree,
)
from steer.pipeline.guided import guided


class Recording(EulerDiscreteScheduler):
    """Keeps the x0 of its latest step."""

    x0: Tensor

    @functools.wraps(EulerDiscreteScheduler.step)
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, return_dict: bool = True, **kwargs: Any
    ) -> Any:
        out = super().step(*args, return_dict=True, **kwargs)
        assert not isinstance(out, tuple) and out.pred_original_sample is not None
        type(self).x0 = out.pred_original_sample
        return out if return_dict else (out.prev_sample, out.pred_original_sample)


@pytest.fixture(scope="module")
def base() -> Any:
    """SDXL as the base of a base-and-refiner pair."""
    pipe = build("sdxl")
    pipe.scheduler = Recording(**BETAS)
    return pipe


def given(**more: Any) -> dict[str, Any]:
    return arguments("sdxl", num_inference_steps=8, denoising_end=0.5, output_type="latent", **more)


def shown(pipe: Any, latents: Tensor) -> Tensor:
    return decode(pipe, latents, asked=Asked({"height": 16, "width": 16}))


class Watching:
    """A reward that keeps what it is shown."""

    differentiable = True

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.seen += list(images.detach())
        return redness(images, prompts)

    def saw(self, image: Tensor) -> bool:
        return any(torch.allclose(image, other, atol=1e-4) for other in self.seen)


@pytest.mark.parametrize("method", [BestOfN(1), BestOfN(3)])
def test_base_and_refiner(base: Any, method: Any) -> None:
    reward = Watching()
    out = guided(base, reward, method=method)(**given())
    plain = base(**given()).images
    clean = shown(base, Recording.x0)
    assert not torch.allclose(clean, shown(base, plain), atol=1e-2)
    assert reward.saw(clean[0]) and not reward.saw(shown(base, out.images)[0])
    if method.n == 1:
        assert torch.equal(out.images, plain)
        assert out.rewards == pytest.approx(redness(clean, []).tolist(), abs=1e-6)
    assert out.report.base_reward == pytest.approx(redness(clean, []).tolist(), abs=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        Prune(3, (1,), (0.5,)),
        SMC(3, kernel="ddim"),
        Guide(BestOfN(2)),
        LookaheadGuidance(),
        NoiseSearch(n=2, rounds=2),
        NoiseSearch(n=2, rounds=2, through=2),
        NoiseOptimization(iterations=1),
        Blockwise(2, kernel="ddim"),
        Beam(2, kernel="ddim"),
        RBF(2, kernel="ddim"),
        EvoSearch((2, 1), at=(0.5,), elites=1),
        DepthFirst(2),
        Tree(3, compute=4, kernel="ddim"),
    ],
)
def test_every_method_judges_x0(base: Any, method: Any) -> None:
    reward = Watching()
    out = guided(base, reward, method=method)(**given())
    assert reward.seen and not reward.saw(shown(base, out.images)[0])


def test_where_images_are_returned_they_are_what_is_judged(base: Any) -> None:
    out = guided(base, redness, method=BestOfN(2))(**(given() | {"output_type": "pt"}))
    assert out.rewards[0] == pytest.approx(float(redness(out.images, [""])), abs=1e-4)


def test_only_a_last_step_with_much_noise_left_ends_in_noise() -> None:
    def step(index: int, sigma: float) -> Step:
        return Step(index, 4, torch.tensor(1.0), 1.0, 5.0, 1.0, sigma, "epsilon")

    assert step(3, 3.0).ends_in_noise
    assert not step(2, 3.0).ends_in_noise
    assert not step(3, 0.0).ends_in_noise and not step(3, 0.03).ends_in_noise


def test_particles_that_are_made_after_the_last_step_are_refused(base: Any) -> None:
    class Late(SMC):
        def __call__(self, ctx: Any, start: Any) -> Any:
            done = yield from ctx.sample(start)
            return ctx.winners(ctx.starts.adopt(done.x, [prompt for prompt, _ in done.ids]))

    with pytest.raises(UnsupportedPipelineError, match="new particles after its last step"):
        guided(base, redness, method=Late(3))(**given())
