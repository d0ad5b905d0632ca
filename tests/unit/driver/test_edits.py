"""Inpainting with an ordinary denoiser: the given image goes back in after every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3InpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
)
from families import build, redness, seeded
from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.core.seeds import row_seed
from steer.core.types import Query, Step
from steer.core.when import every
from steer.driver.decoding.decode import decode
from steer.driver.edits import Edits
from steer.driver.seeds import call_seeds
from steer.methods import SMC, BestOfN, Guide, Method, NoiseOptimization, NoiseSearch, Prune
from steer.pipeline.guided import guided


STEPS = 6


def inpainting(scheduler: Any = DDIMScheduler) -> Any:
    """The tiny SD family as an inpainting pipeline."""
    base = build("sd")
    parts = {**base.components, "scheduler": scheduler.from_config(base.scheduler.config)}
    pipe = StableDiffusionInpaintPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(**given: Any) -> dict[str, Any]:
    image = torch.rand(1, 3, 16, 16, generator=seeded(5))
    mask = torch.zeros(1, 1, 16, 16)
    mask[:, :, :, 8:] = 1
    return {
        "prompt": "a red circle",
        "image": image,
        "mask_image": mask,
        "height": 16,
        "width": 16,
        "num_inference_steps": STEPS,
        "output_type": "pt",
        "generator": seeded(0),
        **given,
    }


@pytest.mark.sample
@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_one_particle_is_the_plain_call(scheduler: Any, strength: float) -> None:
    pipe = inpainting(scheduler)
    plain = pipe(**call(strength=strength)).images
    out = guided(pipe, redness, method=BestOfN(1))(**call(strength=strength))
    assert torch.equal(out.images, plain)


METHODS = [
    BestOfN(3),
    Prune(start=4, keep=(2,), at=(0.5,)),
    SMC(2),
    NoiseSearch(n=2, rounds=2),
    Guide(Prune(start=2, keep=(1,), at=(0.5,))),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_what_is_scored_is_what_is_returned(method: Method) -> None:
    pipe = inpainting()
    strength = 1.0 if isinstance(method, NoiseSearch) else 0.9  # it searches pure noise
    out = guided(pipe, _red, method=method)(**call(strength=strength))
    assert out.images.shape == (1, 3, 16, 16)
    assert out.rewards == pytest.approx(_red(out.images, ["a"]).tolist(), abs=1e-4)


def test_every_particle_is_the_plain_call_from_its_own_noise() -> None:
    """A plain call whose `prepare_latents` draws particle 2's noise ends where particle 2 does."""
    pipe = inpainting()
    out = guided(pipe, _red, method=BestOfN(3))(**call())
    scores = _finals(out)
    plain = float(_red(pipe(**call()).images, ["a"]))
    assert scores[0] == pytest.approx(plain, abs=1e-5)
    (seed,) = call_seeds(seeded(0), 1, 1, "cpu")
    prepare = pipe.prepare_latents

    def own(*args: Any, **kwargs: Any) -> Any:
        image_latents = prepare(*args, **kwargs)[2]  # encoded with noise of its own
        other = seeded(row_seed(seed, 2))
        given = [other if isinstance(a, torch.Generator) else a for a in args]
        return (*prepare(*given, **kwargs)[:2], image_latents)

    pipe.prepare_latents = own
    alone = float(_red(pipe(**call()).images, ["a"]))
    assert scores[2] == pytest.approx(alone, abs=1e-4)
    assert abs(scores[2] - scores[0]) > 1e-3


def _finals(out: Any) -> dict[int, float]:
    events = [event for event in out.report.trace.of("score") if not event["preview"]]
    return {k: r for e in events for k, r in zip(e["particle"], e["reward"], strict=True)}


@pytest.mark.parametrize(
    "method",
    [
        Guide(BestOfN(1), through="denoiser", when=every(1)),
        NoiseOptimization(2, through=2),
    ],
)
def test_gradients_go_through_the_denoiser_and_the_edit(method: Method) -> None:
    pipe = inpainting()
    plain = float(_red(pipe(**call(output_type="pt")).images, ["a"]))
    out = guided(pipe, _red, method=method)(**call())
    assert out.rewards[0] > plain
    assert out.rewards == pytest.approx(_red(out.images, ["a"]).tolist(), abs=1e-4)
    assert torch.is_grad_enabled()


def test_the_given_image_stays() -> None:
    """Outside the mask all candidates end at the image's own latents."""
    pipe = inpainting()
    out = guided(pipe, _red, method=Prune(start=4, keep=(2,), at=(0.5,)))(
        **call(output_type="latent")
    )
    plain = pipe(**call(output_type="latent")).images
    assert torch.equal(out.images[..., :4], plain[..., :4])
    assert not torch.equal(out.images[..., 4:], plain[..., 4:]) or out.report.chosen == [(0, 0)]
    assert decode(pipe, out.images).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_the_given_image_stays_in_short_runs_of_a_flow(strength: float) -> None:
    """What a bare `compute=` plans there: no step of the pipeline's own scheduler is taken."""
    parts = build("sd3").components
    wide = {"in_channels": 16, "out_channels": 16}  # it takes no others
    parts["transformer"] = SD3Transformer2DModel.from_config(parts["transformer"].config, **wide)
    parts["vae"] = AutoencoderKL.from_config(parts["vae"].config, latent_channels=16)
    pipe = StableDiffusion3InpaintPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 16, "strength": strength, "max_sequence_length": 8}
    out = guided(pipe, _red, compute=3)(**call(output_type="latent", **given))
    made = out.report.method
    assert isinstance(made, BestOfN) and made.n > 1 and made.strides == 9  # 5/4 of its guidance, 7
    plain = pipe(**call(output_type="latent", **given)).images
    assert torch.allclose(out.images[..., :4], plain[..., :4], atol=1e-5)
    assert not torch.allclose(out.images[..., 4:], plain[..., 4:], atol=1e-2)


def _red(images: Tensor, prompts: list[str]) -> Tensor:
    return images[:, 0, :, 8:].mean((1, 2))


_red.differentiable = True


def test_controlnet_keeps_its_window_in_every_method() -> None:
    base = build("sd")
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(8, 16))
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    pipe = StableDiffusionControlNetPipeline(**base.components, controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    given = {
        "prompt": "a",
        "image": torch.rand(1, 3, 8, 8, generator=seeded(1)),
        "num_inference_steps": STEPS,
        "control_guidance_end": 0.5,
        "height": 16,
        "width": 16,
        "output_type": "pt",
    }
    plain = pipe(**given, generator=seeded(0)).images
    for width in (1, 2, 4):
        out = guided(pipe, redness, method=BestOfN(4), lane_width=width)(
            **given, generator=seeded(0)
        )
        assert _finals(out)[0] == pytest.approx(float(redness(plain, ["a"])), abs=1e-4)


def test_an_image_in_another_layout_is_refused() -> None:
    step = Step(1, 2, torch.tensor(5), 0.5, 0.5, 1.0, 0.0, "epsilon")
    query = Query(torch.zeros(1, 4, 16), step, ids=((0, 0),))
    with pytest.raises(UnsupportedPipelineError, match="another layout"):
        Edits(lambda names, noise: noise).noised(
            DDIMScheduler(),
            "add_noise",
            (torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4), torch.tensor([5])),
            {},
            query,
            0,
        )
