"""A one-particle method is the plain pipeline, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, PAIRS, arguments, redness, seeded, shared
from torch import Tensor

from steer.methods import BestOfN
from steer.pipeline.guided import guided


def alike(pipe: Any, **given: Any) -> tuple[Any, Any]:
    """Outputs of the plain and of the guided call, and equal generators after both."""
    results, states = [], []
    for call in (pipe, guided(pipe, redness, method=BestOfN(1))):
        torch.manual_seed(3)
        user = given.get("generator")
        copies = [g.clone_state() for g in (user if isinstance(user, list) else [user]) if g]
        now = copies if isinstance(user, list) else next(iter(copies), None)
        results.append(call(**{**given, "generator": now}))
        states.append([torch.get_rng_state(), *(g.get_state() for g in copies)])
    assert all(map(torch.equal, *states))
    return results[0], results[1]


@pytest.mark.parametrize(("family", "scheduler"), PAIRS)
def test_latents_equal_the_plain_call(family: str, scheduler: str) -> None:
    plain, ours = alike(shared(family, scheduler), **arguments(family))
    assert torch.equal(plain[0], ours[0])
    assert ours.report.ledger.denoiser_calls == ours.report.steps


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family: str) -> None:
    pipe = shared(family, dtype=torch.bfloat16)
    plain, ours = alike(pipe, **arguments(family, num_inference_steps=2))
    assert ours[0].dtype == plain[0].dtype
    assert torch.equal(plain[0], ours[0])


@pytest.mark.parametrize("scheduler", ["euler", "dpm++2m", "unipc"])
def test_float16(scheduler: str) -> None:
    pipe = shared("sd", scheduler, dtype=torch.float16)
    plain, ours = alike(pipe, **arguments("sd", num_inference_steps=2))
    assert torch.equal(plain.images, ours.images)


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("family", ["sd", "flux", "pixart", "sana", "wan"])
def test_output_types(family: str, kind: str) -> None:
    plain, ours = alike(
        shared(family), **arguments(family, output_type=kind, num_inference_steps=2)
    )
    assert type(plain) is type(ours)
    assert type(plain[0]) is type(ours[0])
    assert np.array_equal(np.asarray(plain[0][0]), np.asarray(ours[0][0]))
    assert len(ours.rewards) == 1
    assert ours.accepted == [True]


def test_return_dict_false_gives_the_pipelines_tuple() -> None:
    plain, ours = alike(shared("sd"), **arguments("sd", return_dict=False))
    assert isinstance(ours, tuple)
    assert len(ours) == len(plain)
    assert torch.equal(plain[0], ours[0])


MORE: dict[str, dict[str, Any]] = {
    "prompts": {"prompt": ["a red circle", "two"]},
    "images": {"num_images_per_prompt": 3},
    "both": {"prompt": ["a red circle", "two"], "num_images_per_prompt": 2},
    "list": {"prompt": ["a", "b"], "generator": [seeded(1), seeded(2)]},
    "global": {"generator": None},
    "eta": {"eta": 0.7},
    "no guidance": {"guidance_scale": 1.0},
    "rescale": {"guidance_rescale": 0.5},
    "positional": {},
}


@pytest.mark.parametrize("case", MORE)
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "sde-dpm++"])
def test_arguments(case: str, scheduler: str) -> None:
    plain, ours = alike(shared("sd", scheduler), **arguments("sd", **MORE[case]))
    assert torch.equal(plain.images, ours.images)


def test_given_latents_and_embeddings() -> None:
    pipe = shared("sd")
    x = torch.randn(1, 4, 8, 8, generator=seeded(5))
    plain, ours = alike(pipe, **arguments("sd", latents=x))
    assert torch.equal(plain.images, ours.images)
    embeds, negative = pipe.encode_prompt("a blue square", "cpu", 1, True)
    given = arguments("sd", prompt=None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    plain = pipe(**given)
    ours = guided(pipe, redness, method=BestOfN(1))(
        **{**given, "generator": seeded(0)}, reward_prompt="a blue square"
    )
    assert torch.equal(plain.images, ours.images)


def test_custom_timesteps_and_positional_arguments() -> None:
    pipe = shared("sd", "dpm++2m")
    given = {"timesteps": [900, 500, 100], "output_type": "latent"}
    plain = pipe("a red circle", 16, 16, generator=seeded(0), **given)
    ours = guided(pipe, redness, method=BestOfN(1))(
        "a red circle", 16, 16, generator=seeded(0), **given
    )
    assert torch.equal(plain.images, ours.images)


def test_sdxl_denoising_end_reads_the_timesteps_before_its_loop() -> None:
    plain, ours = alike(
        shared("sdxl"), **arguments("sdxl", denoising_end=0.6, num_inference_steps=5)
    )
    assert torch.equal(plain.images, ours.images)
    assert ours.report.steps == 3


def test_image_to_image_runs_the_tail_of_the_grid() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    base = shared("sd", "euler")
    pipe = StableDiffusionImg2ImgPipeline(**base.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16, generator=seeded(1))
    given = {"prompt": "a red circle", "image": image, "strength": 0.6, "num_inference_steps": 5}
    plain = pipe(**given, generator=seeded(0), output_type="latent")
    ours = guided(pipe, redness, method=BestOfN(1))(
        **given, generator=seeded(0), output_type="latent"
    )
    assert torch.equal(plain.images, ours.images)
    assert ours.report.steps == 3
    several = guided(pipe, redness, method=BestOfN(3), lane_width=1)
    wide = guided(pipe, redness, method=BestOfN(3), lane_width=3)
    one = several(**given, generator=seeded(0), output_type="latent")
    three = wide(**given, generator=seeded(0), output_type="latent")
    assert one.report.chosen == three.report.chosen
    assert torch.allclose(one.images, three.images, atol=1e-4)


def test_a_callback_that_changes_latents_is_honoured() -> None:
    def nudge(pipe: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": tensors["latents"] * 1.1 + i}

    plain, ours = alike(shared("sd"), **arguments("sd", callback_on_step_end=nudge))
    assert torch.equal(plain.images, ours.images)
    # in a wide lane it acts on every row
    pipe = shared("sd")
    x = pipe(**arguments("sd", callback_on_step_end=nudge)).images
    wide = guided(
        pipe,
        lambda images, prompts: torch.arange(len(images), 0, -1.0),
        method=BestOfN(2),
        lane_width=2,
    )(**arguments("sd", callback_on_step_end=nudge))
    assert wide.report.chosen == [(0, 0)]
    assert torch.allclose(wide.images, x, atol=1e-3)
